#pragma once
#include <cstddef>
#include <span>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Gives fresh memory its pages ahead of need, by several threads (MADV_POPULATE_WRITE): the first
/// store to each page then costs nothing. The bytes stay as they are. `memory` begins and ends at a
/// page, and is a mapping of this process that may be written. `hands`: threads, the caller
/// included; 0: as many as a copy that the trainer waits for (Beside::kNothing). Does nothing for
/// memory too small for threads, and under a kernel without the call (before 5.14). Does not fail
/// where there is no room: then pages are missing as before. To be sure of the room, reserve it
/// first (posix_fallocate).
MESHSTAGE_API void first_touch(std::span<std::byte> memory, unsigned hands = 0) noexcept;

}  // namespace meshstage
