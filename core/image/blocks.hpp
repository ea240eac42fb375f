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
  /// `digested_bytes`: from the data section's begin to the trailer's, in the whole image.
  /// `first_block`: the blocks before are not to come, as in a replica, which begins with block
  /// borrowed_bytes / block_bytes. Throws InvalidArgument if block_bytes is 0, or first_block
  /// beyond the last block.
  BlockDigests(std::uint64_t block_bytes, std::uint64_t digested_bytes,
               std::size_t first_block = 0);

  [[nodiscard]] std::uint64_t block_bytes() const noexcept { return block_bytes_; }
  /// Blocks of the whole image; the first of them that is to come.
  [[nodiscard]] std::size_t block_count() const noexcept { return digests_.size(); }
  [[nodiscard]] std::size_t first_block() const noexcept { return first_block_; }
  /// Bytes of block `index`; the last one may be shorter.
  [[nodiscard]] std::uint64_t block_size(std::size_t index) const;
  /// Digests a block that has arrived. Throws InvalidArgument on a wrong index or size.
  void add(std::size_t index, std::span<const std::byte> bytes);
  /// The same for a block whose digest64() is known already. Throws InvalidArgument on a wrong
  /// index.
  void put(std::size_t index, std::uint64_t digest);
  /// All blocks from first_block() on were added.
  [[nodiscard]] bool complete() const noexcept;
  /// 0 for a block that was not added.
  [[nodiscard]] std::span<const std::uint64_t> digests() const noexcept { return digests_; }

 private:
  std::uint64_t block_bytes_ = 0;
  std::uint64_t digested_bytes_ = 0;
  std::size_t first_block_ = 0;
  std::vector<std::uint64_t> digests_;
  std::vector<std::uint8_t> added_;
};

/// As verify_image(), with block digests that were made while the blocks arrived: digests the
/// manifest and the trailer, and compares the table. Throws CorruptData as verify_image() does, and
/// InvalidArgument unless `digests` is complete and begins with block 0.
MESHSTAGE_API ImageInfo check_blocks(std::span<const std::byte> image, const BlockDigests& digests);
/// The same for a replica (replica.hpp). Throws CorruptData unless `digests` begins with the
/// replica's first block.
MESHSTAGE_API ImageInfo check_replica_blocks(std::span<const std::byte> replica,
                                             const BlockDigests& digests);

/// Bytes of the trailer of an image whose data up to the trailer are `digested_bytes`.
/// `loans`: ImageInfo::loans.
MESHSTAGE_API std::uint64_t trailer_size(std::uint64_t digested_bytes, std::uint64_t block_bytes,
                                         std::uint32_t loans = 0);

}  // namespace meshstage
