#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/identity/identity.hpp>

namespace meshstage {

/// The digests of an image's blocks, made one by one in any order. Block i has the bytes [i *
/// block_bytes, (i + 1) * block_bytes) behind the manifest; the last block ends at the trailer.
/// Threads: several may add different blocks at once.
class MESHSTAGE_API BlockDigests {
 public:
  BlockDigests() = default;
  /// `digested_bytes`: from the data section's begin to the trailer's, in the whole image.
  /// `first_block`: the first block that will come; a replica begins with block borrowed_bytes /
  /// block_bytes. Throws InvalidArgument if block_bytes is 0, or first_block beyond the last block.
  BlockDigests(std::uint64_t block_bytes, std::uint64_t digested_bytes,
               std::size_t first_block = 0);

  [[nodiscard]] std::uint64_t block_bytes() const noexcept { return block_bytes_; }
  /// block_count(): blocks of the whole image. first_block(): the first block that will come.
  [[nodiscard]] std::size_t block_count() const noexcept { return digests_.size(); }
  [[nodiscard]] std::size_t first_block() const noexcept { return first_block_; }
  /// Bytes of block `index`; the last one may be shorter.
  [[nodiscard]] std::uint64_t block_size(std::size_t index) const;
  /// Digests a block that has arrived. Throws InvalidArgument on a wrong index or size.
  void add(std::size_t index, std::span<const std::byte> bytes);
  /// Like add(), for a block whose digest_block() is known already. Throws InvalidArgument on a
  /// wrong index.
  void put(std::size_t index, const Digest& digest);
  /// True if all blocks from first_block() on were added.
  [[nodiscard]] bool complete() const noexcept;
  /// Each block's digest64(), as the image's trailer has them; 0 for a block that was not added.
  [[nodiscard]] std::span<const std::uint64_t> digests() const noexcept { return digests_; }
  /// The block's digest_block(); zeros if it was not added. Throws InvalidArgument on a wrong
  /// index.
  [[nodiscard]] Digest digest(std::size_t index) const;

 private:
  std::uint64_t block_bytes_ = 0;
  std::uint64_t digested_bytes_ = 0;
  std::size_t first_block_ = 0;
  std::vector<std::uint64_t> digests_;
  std::vector<std::uint64_t> upper_halves_;
  std::vector<std::uint8_t> added_;
};

/// Called when `bytes` more bytes have been read.
using BytesRead = std::function<void(std::uint64_t bytes)>;
/// Like the functions of image.hpp and replica.hpp, but call `read` after the manifest and after
/// each block, so that a caller sees progress on a slow disk. An exception of `read` ends the call.
/// `crew`: its threads prove the blocks and call `read`, several at once; without one the calling
/// thread does both. The error names the first wrong block in either case.
MESHSTAGE_API ImageInfo verify_image(std::span<const std::byte> image, const BytesRead& read,
                                     Crew* crew = nullptr);
MESHSTAGE_API ImageInfo verify_replica(std::span<const std::byte> replica, const BytesRead& read,
                                       Crew* crew = nullptr);

/// Does what verify_image() does, but with block digests that were made while the blocks arrived:
/// it digests manifest and trailer, and compares the block digests with the trailer's. Throws
/// CorruptData like verify_image(), and InvalidArgument unless `digests` is complete and begins
/// with block 0.
MESHSTAGE_API ImageInfo check_blocks(std::span<const std::byte> image, const BlockDigests& digests);
/// check_blocks() for a replica (replica.hpp). Throws CorruptData unless `digests` begins with the
/// replica's first block.
MESHSTAGE_API ImageInfo check_replica_blocks(std::span<const std::byte> replica,
                                             const BlockDigests& digests);

/// Proves an image part by part: a caller that needs one part does not read the others. Threads:
/// one at a time.
class MESHSTAGE_API ImageProof {
 public:
  /// Checks trailer and manifest. `image`, which has exactly the image's bytes, is kept: it must
  /// outlive this object. Calls `read` with the manifest's bytes. Throws CorruptData as
  /// verify_image() does.
  explicit ImageProof(std::span<const std::byte> image, const BytesRead& read = {});
  ImageProof(ImageProof&&) noexcept;
  ImageProof& operator=(ImageProof&&) noexcept;
  ~ImageProof();
  [[nodiscard]] std::span<const std::byte> image() const noexcept;
  [[nodiscard]] const ImageInfo& info() const noexcept;
  /// Checks the blocks in which the image's bytes [begin, end) lie; each block only the first time.
  /// Calls `read` after each block that it has read. `crew`: as for verify_image(). Bytes of
  /// manifest and trailer are proven already. Throws CorruptData as verify_image() does, and
  /// InvalidArgument if the range does not lie in the image.
  void prove(std::uint64_t begin, std::uint64_t end, const BytesRead& read = {},
             Crew* crew = nullptr);
  /// The caller has had each byte of this very memory proven, by verify_image(): prove() reads
  /// nothing any more.
  void set_proven() noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Hands a whole image to `take` in pieces, ascending and without gaps, each with its offset. The
/// call copies a piece into memory of its own and compares the copy with the image's digests, so it
/// never hands out bytes that have rotted in `image`. Throws CorruptData as verify_image() does,
/// before it hands out a wrong piece; do not use the pieces before that one then. The copies take
/// the memory of the manifest, of a block or of the trailer, whichever is largest.
MESHSTAGE_API ImageInfo read_proven(
    std::span<const std::byte> image,
    const std::function<void(std::span<const std::byte> piece, std::uint64_t offset)>& take);

/// Bytes of the trailer of an image whose data up to the trailer are `digested_bytes`.
/// `loans`: ImageInfo::loans.
MESHSTAGE_API std::uint64_t trailer_size(std::uint64_t digested_bytes, std::uint64_t block_bytes,
                                         std::uint32_t loans = 0);

}  // namespace meshstage
