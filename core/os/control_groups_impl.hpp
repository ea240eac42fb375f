#pragma once
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage::detail {

/// The two kinds of control groups, which name the same things differently.
enum class GroupVersion { k1, k2 };

/// Calls `visit` with the directory of each control group that limits this process and has
/// `controller` ("memory", "cpu"): the process's own group first, then the groups around it up to
/// the mount. Some of the directories may not exist: a container sees its own group at the mount's
/// top. Throws SystemError where /proc/self/cgroup exists and cannot be read.
void for_each_control_group(
    FileSystem& fs, std::string_view controller,
    const std::function<void(const std::filesystem::path& directory, GroupVersion version)>& visit);

/// The number after `key` at the begin of a line; nothing if no line has one.
[[nodiscard]] std::optional<std::uint64_t> find_number(std::string_view text, std::string_view key);
/// The number that a file holds; nothing for "max", or if the file does not exist.
[[nodiscard]] std::optional<std::uint64_t> read_number(FileSystem& fs,
                                                       const std::filesystem::path& path);

}  // namespace meshstage::detail
