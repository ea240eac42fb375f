#include <meshstage/core/os/control_groups_impl.hpp>

#include <algorithm>
#include <charconv>

namespace meshstage::detail {
namespace {

void walk_up(const std::filesystem::path& mount, std::string_view group, GroupVersion version,
             const std::function<void(const std::filesystem::path&, GroupVersion)>& visit) {
  std::string path(group);
  while (true) {
    visit(mount.native() + path, version);
    if (path.empty()) return;
    path.erase(path.rfind('/'));
  }
}

}  // namespace

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

std::optional<std::uint64_t> read_number(FileSystem& fs, const std::filesystem::path& path) {
  const auto text = read_text(fs, path);
  return text ? find_number(*text, "") : std::nullopt;
}

// Lines are "number:controllers:path"; version 2 is number 0 without controllers. In a container
// the path may be the host's while the mount shows the container's own group at its top: walking
// up from a path that is not there ends at that top.
void for_each_control_group(
    FileSystem& fs, std::string_view controller,
    const std::function<void(const std::filesystem::path&, GroupVersion)>& visit) {
  const std::string groups = read_text(fs, "/proc/self/cgroup").value_or("");
  const std::string wanted = "," + std::string(controller) + ",";
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
      walk_up("/sys/fs/cgroup", path, GroupVersion::k2, visit);
    } else if (controllers.find(wanted) != std::string::npos) {
      walk_up("/sys/fs/cgroup/" + std::string(controller), path, GroupVersion::k1, visit);
    }
  }
}

}  // namespace meshstage::detail
