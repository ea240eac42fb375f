#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <meshstage/core/os/available_memory.hpp>

namespace meshstage {

/// An allocation that a rank is about to make in a directory.
struct RoomRequest {
  std::string what = "the vault";  ///< Named in the error.
  std::uint64_t bytes_per_rank = 0;
  int local_ranks = 1;     ///< Ranks on this host; each needs as much.
  std::uint64_t held = 0;  ///< What these ranks have of it already, together.
};

/// The memory and space that there is.
struct RoomLimits {
  AvailableMemory memory;
  FreeSpace space;                  ///< Of the file system of `directory`.
  std::filesystem::path directory;  ///< An empty path: plain memory, no file system involved.
};

/// Asks the system. Memory and control groups are read through `fs` too if it has a /proc.
[[nodiscard]] MESHSTAGE_API RoomLimits read_room_limits(FileSystem& fs,
                                                        const std::filesystem::path& directory);

/// Returns if there is room; else throws OutOfMemory with path() = the directory. The message says
/// the bytes needed (each rank and all), the bytes available and the remedy. It also names the
/// limit that binds: MemAvailable, the control group, or the file system of the directory. Pure: no
/// system calls. Memory binds only where the file system is in memory (or there is none); of two
/// limits the smaller one is named.
MESHSTAGE_API void check_room(const RoomRequest& request, const RoomLimits& limits);

/// Throws the error of check_room() without comparing: for a caller to which the system has said
/// that there is no room. `system_says` is added to the message.
[[noreturn]] MESHSTAGE_API void throw_no_room(const RoomRequest& request, const RoomLimits& limits,
                                              std::string_view system_says);

}  // namespace meshstage
