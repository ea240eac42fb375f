#include <meshstage/core/os/available_processors.hpp>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <thread>

#include <meshstage/core/os/control_groups_impl.hpp>

namespace meshstage {
namespace {

using detail::GroupVersion;

/// Nothing also where reading is refused: what hides these files tells no limit.
std::optional<std::string> text_of(FileSystem& fs, const std::filesystem::path& path) {
  try {
    return read_text(fs, path);
  } catch (const SystemError&) {
    return std::nullopt;
  }
}

std::optional<std::uint64_t> number_of(FileSystem& fs, const std::filesystem::path& path) {
  const auto text = text_of(fs, path);
  return text ? detail::find_number(*text, "") : std::nullopt;
}

/// How many numbers "0-3,8,10-11" names; 0 for what is no such list.
unsigned count_of_list(std::string_view list) {
  unsigned count = 0;
  const char* at = list.data();
  const char* const end = at + list.size();
  while (true) {
    unsigned first = 0;
    auto read = std::from_chars(at, end, first);
    if (read.ec != std::errc()) return 0;
    unsigned last = first;
    if (read.ptr != end && *read.ptr == '-') {
      read = std::from_chars(read.ptr + 1, end, last);
      if (read.ec != std::errc() || last < first) return 0;
    }
    count += last - first + 1;
    if (read.ptr == end || *read.ptr != ',') return count;
    at = read.ptr + 1;
  }
}

unsigned allowed_processors(FileSystem& fs) {
  constexpr std::string_view kKey = "\nCpus_allowed_list:";
  const auto status = text_of(fs, "/proc/thread-self/status");
  const auto at = status ? status->find(kKey) : std::string::npos;
  unsigned count = 0;
  if (at != std::string::npos) {
    std::string_view list = std::string_view(*status).substr(at + kKey.size());
    list.remove_prefix(std::min(list.find_first_not_of(" \t"), list.size()));
    count = count_of_list(list);
  }
  return count != 0 ? count : std::max(1U, std::thread::hardware_concurrency());
}

/// Microseconds of processor time in each period; nothing where there is no limit.
std::optional<double> quota_of(FileSystem& fs, const std::filesystem::path& group,
                               GroupVersion version) {
  std::optional<std::uint64_t> time, period;
  if (version == GroupVersion::k1) {
    time = number_of(fs, group / "cpu.cfs_quota_us");  // -1: none
    period = number_of(fs, group / "cpu.cfs_period_us");
  } else if (const auto both = text_of(fs, group / "cpu.max")) {  // "200000 100000", "max 100000"
    time = detail::find_number(*both, "");
    const auto space = both->find(' ');
    if (space != std::string::npos) period = detail::find_number(both->substr(space + 1), "");
  }
  if (!time || !period || *period == 0) return std::nullopt;
  return static_cast<double>(*time) / static_cast<double>(*period);
}

}  // namespace

AvailableProcessors available_processors(FileSystem& fs) {
  AvailableProcessors processors;
  processors.allowed = allowed_processors(fs);
  if (!text_of(fs, "/proc/self/cgroup")) return processors;
  detail::for_each_control_group(fs, "cpu",
                                 [&](const std::filesystem::path& group, GroupVersion version) {
                                   const auto quota = quota_of(fs, group, version);
                                   if (!quota || (processors.quota && *processors.quota <= *quota))
                                     return;
                                   processors.quota = quota;
                                   processors.cgroup = group.native();
                                 });
  return processors;
}

}  // namespace meshstage
