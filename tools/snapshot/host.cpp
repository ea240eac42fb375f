// Reads what doctor looks at from the system.
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <set>
#include <sstream>
#include <string_view>

#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/listing.hpp>

#include "tools/snapshot/doctor.hpp"

extern char** environ;

namespace meshstage::tools {
namespace {

/// The word in brackets of "always [madvise] never".
std::string chosen_word(const std::optional<std::string>& text) {
  if (!text) return {};
  const auto begin = text->find('[');
  const auto end = text->find(']', begin == std::string::npos ? 0 : begin);
  if (begin == std::string::npos || end == std::string::npos) return {};
  return text->substr(begin + 1, end - begin - 1);
}

std::uint64_t memory_total(FileSystem& fs) {
  std::istringstream lines(read_text(fs, "/proc/meminfo").value_or(""));
  std::string name;
  std::uint64_t kib = 0;
  while (lines >> name >> kib) {
    if (name == "MemTotal:") return kib * 1024;
    lines.ignore(1000, '\n');
  }
  return 0;
}

void read_limit(__rlimit_resource_t which, std::uint64_t& soft, std::uint64_t& hard) {
  rlimit limit{};
  if (::getrlimit(which, &limit) != 0) return;
  const auto value = [](rlim_t l) {
    return l == RLIM_INFINITY ? HostFacts::kUnlimited : static_cast<std::uint64_t>(l);
  };
  soft = value(limit.rlim_cur);
  hard = value(limit.rlim_max);
}

/// The last RemoveIPC= that is not a comment.
std::optional<bool> remove_ipc(FileSystem& fs) {
  std::istringstream lines(read_text(fs, "/etc/systemd/logind.conf").value_or(""));
  std::optional<bool> found;
  constexpr std::string_view kName = "RemoveIPC=";
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(kName)) continue;
    const auto word = line.substr(kName.size());
    found = !(word == "no" || word == "false" || word == "off" || word == "0");
  }
  return found;
}

void count_dead_vaults(FileSystem& fs, HostFacts& facts) {
  const auto vaults = list_vaults(facts.room.directory, fs);
  std::set<std::string> living;
  for (const auto& v : vaults) {
    if (v.owner_alive) living.insert(v.job);
  }
  for (const auto& v : vaults) {
    if (living.contains(v.job)) continue;
    ++facts.dead_vaults;
    facts.dead_vault_bytes += v.bytes;
  }
}

/// As the job would be refused.
void find_own_address(HostFacts& facts) {
  const auto named = facts.environment.find("MESHSTAGE_HOST");
  TcpTransportOptions options;
  if (named != facts.environment.end()) options.host = named->second;
  try {
    facts.own_address = options.host.empty() ? address_for_other_hosts() : options.host;
    (void)make_tcp_transport(options);
  } catch (const Error& e) {  // of the address, or of the system
    facts.own_address.clear();
    facts.host_error = e.what();
  }
}

/// A folder is not made, and not looked at.
void ask_store(HostFacts& facts) {
  const auto named = facts.environment.find("MESHSTAGE_STORE");
  if (named == facts.environment.end() || named->second.empty()) return;
  const std::string& address = named->second;
  if (address.starts_with('/') || address.starts_with("file:/")) return;
  constexpr std::chrono::seconds kLongEnough{1};
  try {
    open_store(address)->wait_reachable(Deadline::after(kLongEnough));
  } catch (const Error& e) {
    facts.store_error = e.what();
    facts.store_silent = e.kind() == ErrorKind::kTimeout;
  }
}

}  // namespace

HostFacts read_host(FileSystem& fs, const std::filesystem::path& vault) {
  HostFacts facts;
  const auto stat = fs.stat(vault);
  facts.vault_exists = stat && stat->is_directory;
  facts.vault_is_other = stat && !stat->is_directory;
  facts.room = read_room_limits(fs, facts.vault_exists ? vault : std::filesystem::path());
  facts.room.directory = vault;
  facts.vault_writable = facts.vault_exists && ::access(vault.c_str(), W_OK | X_OK) == 0;
  facts.memory_total = memory_total(fs);
  facts.huge_pages = chosen_word(read_text(fs, "/sys/kernel/mm/transparent_hugepage/enabled"));
  facts.shared_huge_pages =
      chosen_word(read_text(fs, "/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
  read_limit(RLIMIT_MEMLOCK, facts.memlock_soft, facts.memlock_hard);
  read_limit(RLIMIT_NOFILE, facts.files_soft, facts.files_hard);
  std::uint64_t hard = 0;
  read_limit(RLIMIT_FSIZE, facts.file_size_soft, hard);
  facts.uid = fs.process().uid;
  facts.logind = fs.stat("/run/systemd/seats").has_value();
  facts.remove_ipc = remove_ipc(fs);
  for (char** at = environ; at != nullptr && *at != nullptr; ++at) {
    const std::string_view variable(*at);
    const auto equals = variable.find('=');
    if (equals != std::string_view::npos) {
      facts.environment.emplace(variable.substr(0, equals), variable.substr(equals + 1));
    }
  }
  find_own_address(facts);
  ask_store(facts);
  if (facts.vault_exists) count_dead_vaults(fs, facts);
  return facts;
}

}  // namespace meshstage::tools
