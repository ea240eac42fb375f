#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

enum class CopyHint : std::uint8_t {
  kAuto,    ///< Streaming for kStreamingCrossover bytes and more.
  kCached,  ///< memcpy: the target is read again soon, or is small.
  /// Stores that bypass the cache: for a part, of any size, of something larger than the cache.
  kStreaming,
};

/// From this size on stores that bypass the cache are faster than memcpy (measured: the crossover
/// lies between 1 and 16 MiB). The target is not in the cache afterwards.
inline constexpr std::size_t kStreamingCrossover = std::size_t{4} << 20U;

/// Copies `source` to the front of `target`; the ranges do not overlap and target.size() >=
/// source.size(). Streaming needs AVX2, which is checked at run time; without it this is memcpy.
/// All stores are fenced (sfence) before it returns, so that a release store afterwards publishes
/// the bytes. Threads: any.
MESHSTAGE_API void fast_copy(std::span<std::byte> target, std::span<const std::byte> source,
                             CopyHint hint = CopyHint::kAuto) noexcept;

/// Whether this CPU has the streaming path.
[[nodiscard]] MESHSTAGE_API bool has_streaming_copy() noexcept;

}  // namespace meshstage
