#pragma once
#include <cstddef>
#include <span>

#include <meshstage/core/memory/fast_copy.hpp>

namespace meshstage::detail {

/// Copies `source` to the front of `target`; they do not overlap. `streaming`: it is part of
/// something larger than the cache; else the copy decides by the size.
inline void copy_bytes(std::span<std::byte> target, std::span<const std::byte> source,
                       bool streaming = false) noexcept {
  fast_copy(target, source, streaming ? CopyHint::kStreaming : CopyHint::kAuto);
}

}  // namespace meshstage::detail
