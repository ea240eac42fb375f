#pragma once
#include <cstddef>
#include <span>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Gives fresh memory its pages ahead of need, by several threads (MADV_POPULATE_WRITE): the first
/// store to each page then costs nothing. The bytes stay as they are. `memory` begins and ends at a
/// page, and is a mapping of this process that may be written. `hands`: threads, the caller
/// included; 0: as many as a copy would use that the trainer waits for. Memory too small for
/// threads, and a kernel that lacks the call (before 5.14), are left to be touched by stores.
/// Nothing fails, and nothing kills, where there is no room: then pages are missing as before; what
/// must not fail later is reserved by other means (posix_fallocate).
MESHSTAGE_API void first_touch(std::span<std::byte> memory, unsigned hands = 0) noexcept;

}  // namespace meshstage
