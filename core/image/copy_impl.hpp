#pragma once
#include <cstddef>
#include <cstring>
#include <span>

namespace meshstage::detail {

/// Copies `source` to the front of `target`; they do not overlap. `streaming`: it is part of
/// something larger than the cache.
inline void copy_bytes(std::span<std::byte> target, std::span<const std::byte> source,
                       bool streaming = false) noexcept {
  static_cast<void>(streaming);
  if (!source.empty()) std::memcpy(target.data(), source.data(), source.size());
}

}  // namespace meshstage::detail
