#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include <meshstage/core/identity/identity.hpp>

namespace meshstage::detail {

/// Writes one block of an image front to back and digests it in the same pass. The digest is that
/// of the stored bytes, even if another thread changes the source meanwhile. With AVX2 it costs no
/// more than the copy alone, because a copy waits for memory and XXH3 does not. Without AVX2 the
/// block is read again at the end.
/// Threads: one for each block.
class DigestingCopy {
 public:
  /// `block`: the whole block, aligned in memory like an image's. `streaming`: stores bypass the
  /// cache.
  DigestingCopy(std::span<std::byte> block, bool streaming) noexcept;

  /// Appends bytes. All appended bytes together must fit the block.
  void write(std::span<const std::byte> bytes) noexcept;
  void write_zeros(std::size_t bytes) noexcept;
  /// Counts the next bytes as written, because a device has copied them into the block.
  void take(std::size_t bytes) noexcept;
  /// digest_block() of the block. Call it when the whole block was written. All stores are fenced.
  [[nodiscard]] Digest finish() noexcept;

 private:
  void digest_written() noexcept;
  std::span<std::byte> block_;
  bool fused_, streaming_;
  std::size_t at_ = 0;        // written
  std::size_t digested_ = 0;  // whole stripes, with at_ where these are whole
  std::size_t stripes_;       // those that are digested in order: all, but for the last bytes
  alignas(32) std::array<std::uint64_t, 8> lanes_;
};

}  // namespace meshstage::detail
