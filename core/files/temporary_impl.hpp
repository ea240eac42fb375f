#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include <meshstage/core/os/file_system.hpp>

/// Files that nobody needs any more once their writer is dead (publish.cpp has the reasons).
namespace meshstage::detail {

/// Comes before the writer's pid in the name of each temporary file.
inline constexpr std::string_view kTemporaryMark = ".tmp-";

/// The part that the names of all temporary files of this process have in common. The part that
/// tells the files apart follows it.
std::string own_mark(const ProcessIdentity& process);

/// Creates and locks the temporary file. If a remove_leftovers() elsewhere finds the file between
/// the two and removes it as a dead writer's, the call makes it again. A file that is locked stays.
std::unique_ptr<File> create_locked(FileSystem& fs, const std::filesystem::path& temporary);

}  // namespace meshstage::detail
