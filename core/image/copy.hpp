#pragma once
#include <cstddef>
#include <span>

#include <meshstage/core/memory/fast_copy.hpp>

namespace meshstage::detail {

/// Copies `source` to the front of `target`; the two must not overlap. `streaming`: the bytes are
/// part of something larger than the cache; otherwise the size decides how they are copied.
inline void copy_bytes(std::span<std::byte> target, std::span<const std::byte> source,
                       bool streaming = false) noexcept {
  fast_copy(target, source, streaming ? CopyHint::kStreaming : CopyHint::kAuto);
}

}  // namespace meshstage::detail
