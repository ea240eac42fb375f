#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// Makes `target` a file of these pieces, one after the other: whoever looks, also after a crash or
/// power loss, finds the old file whole or the new one whole; after it returns, the new one. If it
/// throws (IoError), `target` is as it was (or, if only the last step failed, new but perhaps not
/// yet durable) and no temporary file is left, unless removing it failed too. The directory must
/// exist.
MESHSTAGE_API void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                                      std::span<const std::span<const std::byte>> pieces);
MESHSTAGE_API void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                                      std::span<const std::byte> bytes);

/// The same for a file that `write` fills (at any offsets), for what is too large to lay out in
/// memory first. What `write` throws is passed on.
MESHSTAGE_API void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                                      const std::function<void(File&)>& write);

/// Removes the temporary files in `directory` whose writer is dead (it holds a record lock on them
/// while it writes). Returns how many. A directory that does not exist has none.
MESHSTAGE_API std::size_t remove_leftovers(FileSystem& fs, const std::filesystem::path& directory);

}  // namespace meshstage
