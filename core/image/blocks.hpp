#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/image/identity.hpp>

namespace meshstage {

/// XXH3-64 of bytes, as the block digests of an image are. 30 GB/s a core where there is AVX2.
MESHSTAGE_API std::uint64_t digest64(std::span<const std::byte> bytes) noexcept;
/// XXH3-128 of bytes, as the manifest's and the image's digests are.
MESHSTAGE_API Digest digest128(std::span<const std::byte> bytes) noexcept;

/// The digests of an image's blocks, made one by one in any order: block i is the bytes
/// [i * block_bytes, (i + 1) * block_bytes) behind the manifest, the last one up to the trailer.
/// Threads: different blocks may be added from different threads at once.
class MESHSTAGE_API BlockDigests {
 public:
  BlockDigests() = default;
  /// `digested_bytes`: from the data section's begin to the trailer's.
  /// Throws InvalidArgument if block_bytes is 0.
  BlockDigests(std::uint64_t block_bytes, std::uint64_t digested_bytes);

  [[nodiscard]] std::uint64_t block_bytes() const noexcept { return block_bytes_; }
  [[nodiscard]] std::size_t block_count() const noexcept { return digests_.size(); }
  /// Bytes of block `index`; the last one may be shorter.
  [[nodiscard]] std::uint64_t block_size(std::size_t index) const;
  /// Digests a block that has arrived. Throws InvalidArgument on a wrong index or size.
  void add(std::size_t index, std::span<const std::byte> bytes);
  /// All blocks were added.
  [[nodiscard]] bool complete() const noexcept;
  /// 0 for a block that was not added.
  [[nodiscard]] std::span<const std::uint64_t> digests() const noexcept { return digests_; }

 private:
  std::uint64_t block_bytes_ = 0;
  std::uint64_t digested_bytes_ = 0;
  std::vector<std::uint64_t> digests_;
  std::vector<std::uint8_t> added_;
};

/// As verify_image(), with block digests that were made while the blocks arrived: digests the
/// manifest and the trailer, and compares the table. Throws CorruptData as verify_image() does, and
/// InvalidArgument unless `digests` is complete.
MESHSTAGE_API ImageInfo check_blocks(std::span<const std::byte> image, const BlockDigests& digests);

/// Bytes of the trailer of an image whose data up to the trailer are `digested_bytes`.
MESHSTAGE_API std::uint64_t trailer_size(std::uint64_t digested_bytes, std::uint64_t block_bytes);

}  // namespace meshstage
