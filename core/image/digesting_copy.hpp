#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace meshstage::detail {

/// Writes one block of an image front to back and digests it in the same pass: digested is what was
/// stored, even where another thread changes the source meanwhile. With AVX2 that costs no more
/// than the copy alone, because a copy waits for memory and XXH3 does not; without, the block is
/// read again at the end.
/// Threads: one; different blocks from different threads.
class DigestingCopy {
 public:
  /// `block`: all of it, as aligned in memory as images are. `streaming`: stores bypass the cache.
  DigestingCopy(std::span<std::byte> block, bool streaming) noexcept;

  /// Appends. Together no more than the block has.
  void write(std::span<const std::byte> bytes) noexcept;
  void write_zeros(std::size_t bytes) noexcept;
  /// The next bytes are in the block already: a device has copied them there.
  void take(std::size_t bytes) noexcept;
  /// XXH3-64 of the block, once all of it was written. All stores are fenced.
  [[nodiscard]] std::uint64_t finish() noexcept;

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
