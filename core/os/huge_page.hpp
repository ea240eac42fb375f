#pragma once
#include <cstddef>

namespace meshstage {

/// The size and alignment of the processor's huge pages (x86-64, and aarch64 with pages of 4 KiB).
inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20U;

}  // namespace meshstage
