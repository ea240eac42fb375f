#include <meshstage/core/os/available_memory.hpp>

#include <algorithm>
#include <charconv>
#include <string_view>

namespace meshstage {

namespace {

/// The number after `key` at the start of a line, in the file's own unit.
std::optional<std::uint64_t> find_number(std::string_view text, std::string_view key) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    if (line.substr(0, key.size()) != key) continue;
    line.remove_prefix(key.size());
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    std::uint64_t value = 0;
    if (std::from_chars(line.data(), line.data() + line.size(), value).ec == std::errc())
      return value;
  }
  return std::nullopt;
}

/// A file that is one number; nothing for "max" or if it is not there.
std::optional<std::uint64_t> read_number(FileSystem& fs, const std::filesystem::path& path) {
  const auto text = read_text(fs, path);
  return text ? find_number(*text, "") : std::nullopt;
}

/// How the two versions name the same things.
struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* reclaimable;  // in memory.stat
};
constexpr GroupFiles kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes",
                               "total_inactive_file "};
constexpr GroupFiles kVersion2{"memory.max", "memory.current", "inactive_file "};

/// Lowers `memory` to the tightest of `group` and the groups above it, up to `mount`.
void tighten(FileSystem& fs, const std::filesystem::path& mount, std::string_view group,
             const GroupFiles& files, AvailableMemory& memory) {
  constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 60U;  // version 1 says 2^63 less a page
  std::string path(group);
  while (true) {
    const std::filesystem::path directory = mount.native() + path;
    const auto limit = read_number(fs, directory / files.limit);
    const auto usage = read_number(fs, directory / files.usage);
    if (limit && usage && *limit < kUnlimited) {
      const auto stat = read_text(fs, directory / "memory.stat");
      const std::uint64_t reclaimable =
          stat ? find_number(*stat, files.reclaimable).value_or(0) : 0;
      const std::uint64_t used = *usage - std::min(*usage, reclaimable);
      const std::uint64_t headroom = *limit - std::min(*limit, used);
      if (!memory.cgroup_headroom || headroom < *memory.cgroup_headroom) {
        memory.cgroup_headroom = headroom;
        memory.cgroup = directory.native();
      }
    }
    if (path.empty()) return;
    path.erase(path.rfind('/'));
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

  // Lines are "number:controllers:path"; version 2 is number 0 without controllers. In a container
  // the path may be the host's while the mount shows the container's own group at its top: walking
  // up from a path that is not there ends at that top.
  const std::string groups = read_text(fs, "/proc/self/cgroup").value_or("");
  for (std::size_t at = 0; at < groups.size();) {
    const std::size_t end = std::min(groups.find('\n', at), groups.size());
    const std::string_view line = std::string_view(groups).substr(at, end - at);
    at = end + 1;
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string controllers =
        "," + std::string(line.substr(first + 1, second - first - 1)) + ",";
    std::string_view path = line.substr(second + 1);
    if (path.empty() || path.front() != '/') continue;
    if (path == "/") path = "";
    if (controllers == ",,") {
      tighten(fs, "/sys/fs/cgroup", path, kVersion2, memory);
    } else if (controllers.find(",memory,") != std::string::npos) {
      tighten(fs, "/sys/fs/cgroup/memory", path, kVersion1, memory);
    }
  }
  return memory;
}

}  // namespace meshstage
