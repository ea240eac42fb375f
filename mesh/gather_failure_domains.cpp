#include <unistd.h>

#include <array>
#include <cerrno>
#include <unordered_map>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/failure_domains.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) throw_errno("gethostname", "", errno);
  return name.data();
}

FailureDomains gather_failure_domains(ProcessGroup& group, const std::string& host,
                                      const std::string& rack, Deadline deadline) {
  // The rank's own mistake is found below, on all ranks alike, so it travels as it is.
  const std::string mine = host + '\0' + rack;
  const auto all = collectives::all_gather_bytes(group, std::as_bytes(std::span(mine)), deadline);
  std::vector<Host> hosts;
  std::unordered_map<std::string, std::size_t> numbers;
  for (std::size_t r = 0; r < all.size(); ++r) {
    const std::string_view text(reinterpret_cast<const char*>(all[r].data()), all[r].size());
    const auto zero = text.find('\0');
    const std::string name(text.substr(0, zero));
    const std::string in(zero == std::string_view::npos ? "" : text.substr(zero + 1));
    if (name.empty()) {
      throw make_error<InvalidArgument>(
          "rank " + std::to_string(r) + " says no host name: give one (host_name() is the default)",
          static_cast<int>(r));
    }
    const auto [it, added] = numbers.emplace(name, hosts.size());
    if (added) hosts.push_back({name, in, {}});
    Host& known = hosts[it->second];
    if (known.rack != in) {
      throw make_error<InvalidArgument>(
          "host " + text::quoted(name) + " is in rack " + text::quoted(known.rack) + " to rank " +
              std::to_string(known.ranks.front()) + " and in " + text::quoted(in) + " to rank " +
              std::to_string(r) + ": all ranks of a host say the same rack",
          static_cast<int>(r));
    }
    known.ranks.push_back(static_cast<int>(r));
  }
  return FailureDomains::from_hosts(std::move(hosts));
}

}  // namespace meshstage
