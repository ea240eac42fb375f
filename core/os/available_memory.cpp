#include <meshstage/core/os/available_memory.hpp>

#include <algorithm>

#include <meshstage/core/os/control_groups_impl.hpp>

namespace meshstage {

namespace {

using detail::find_number;
using detail::GroupVersion;
using detail::read_number;

/// How the two versions name the same things.
struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* reclaimable;  // in memory.stat
};
constexpr GroupFiles kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes",
                               "total_inactive_file "};
constexpr GroupFiles kVersion2{"memory.max", "memory.current", "inactive_file "};

/// Lowers `memory` to what the group leaves.
void tighten(FileSystem& fs, const std::filesystem::path& directory, const GroupFiles& files,
             AvailableMemory& memory) {
  constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 60U;  // version 1 says 2^63 less a page
  const auto limit = read_number(fs, directory / files.limit);
  const auto usage = read_number(fs, directory / files.usage);
  if (!limit || !usage || *limit >= kUnlimited) return;
  const auto stat = read_text(fs, directory / "memory.stat");
  const std::uint64_t reclaimable = stat ? find_number(*stat, files.reclaimable).value_or(0) : 0;
  const std::uint64_t used = *usage - std::min(*usage, reclaimable);
  const std::uint64_t headroom = *limit - std::min(*limit, used);
  if (!memory.cgroup_headroom || headroom < *memory.cgroup_headroom) {
    memory.cgroup_headroom = headroom;
    memory.cgroup = directory.native();
  }
}

}  // namespace

std::string AvailableMemory::limit() const {
  return cgroup_binds() ? "the memory limit of control group " + cgroup
                        : "MemAvailable of /proc/meminfo";
}

AvailableMemory available_memory(FileSystem& fs) {
  const auto info = read_text(fs, "/proc/meminfo");
  const auto available = info ? find_number(*info, "MemAvailable:") : std::nullopt;
  if (!available) {
    throw make_error<IoError>("/proc/meminfo has no MemAvailable line; mount /proc", {}, {},
                              "/proc/meminfo");
  }
  AvailableMemory memory;
  memory.mem_available = *available * 1024;
  detail::for_each_control_group(
      fs, "memory", [&](const std::filesystem::path& directory, GroupVersion version) {
        tighten(fs, directory, version == GroupVersion::k1 ? kVersion1 : kVersion2, memory);
      });
  return memory;
}

}  // namespace meshstage
