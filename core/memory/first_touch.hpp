#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// Gives fresh memory its pages ahead of need, by several threads (MADV_POPULATE_WRITE): the first
/// store to each page then costs nothing. The bytes stay as they are. `memory` begins and ends at a
/// page, and is a mapping of this process that may be written. `hands`: threads, the caller
/// included; 0: as many as a copy that the trainer waits for (Beside::kNothing). Does nothing for
/// memory too small for threads, and under a kernel without the call (before 5.14). Does not fail
/// where there is no room: then pages are missing as before. To be sure of the room, reserve it
/// first (posix_fallocate).
MESHSTAGE_API void first_touch(std::span<std::byte> memory, unsigned hands = 0) noexcept;

/// File::reserve(size) for a file in shared memory whose first `from` bytes have their pages
/// already. Where the kernel has huge pages for the rest (File::reserve_huge), several threads make
/// them first, which is faster. The file gets its new size only when it has all pages: so no store
/// to it can run out of space, whenever this process ends. `hands`: as for first_touch(). Throws
/// SystemError, as File::reserve() does; then pages may lie behind the file's end, until
/// File::truncate(from). Threads: any; nobody else changes the file's size meanwhile.
MESHSTAGE_API void reserve_memory(File& file, std::uint64_t from, std::uint64_t size,
                                  unsigned hands = 0);

}  // namespace meshstage
