#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// Makes `target` a file of these pieces, one after the other. A reader finds the whole old file or
/// the whole new one, also after a crash or a power loss; once the call has returned, the new one.
/// The directory must exist.
/// Throws IoError. Then `target` is as it was, or, if only the last step failed, the new file that
/// is perhaps not yet durable. No temporary file is left, unless removing it failed too.
MESHSTAGE_API void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                                      std::span<const std::span<const std::byte>> pieces);
MESHSTAGE_API void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                                      std::span<const std::byte> bytes);

/// Publishes a file that `write` fills (at any offsets), for contents that are too large to lay out
/// in memory first. Passes on what `write` throws.
MESHSTAGE_API void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                                      const std::function<void(File&)>& write);

/// Removes the temporary files in `directory` whose writer is dead (a writer holds a record lock on
/// its file). Returns how many. A directory that does not exist has none.
MESHSTAGE_API std::size_t remove_leftovers(FileSystem& fs, const std::filesystem::path& directory);

}  // namespace meshstage
