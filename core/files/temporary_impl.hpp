#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include <meshstage/core/os/file_system.hpp>

/// Files that nobody needs any more once their writer is dead (publish.cpp has the reasons).
namespace meshstage::detail {

/// What stands before the writer in the name of each of them.
inline constexpr std::string_view kTemporaryMark = ".tmp-";

/// The end of the names of all temporary files of this process, but for what tells them apart.
std::string own_mark(const ProcessIdentity& process);

/// The temporary file, created and locked. A remove_leftovers() elsewhere may find it between the
/// two and take it for a dead writer's; then it is made again. Once it is locked under its name it
/// stays.
std::unique_ptr<File> create_locked(FileSystem& fs, const std::filesystem::path& temporary);

}  // namespace meshstage::detail
