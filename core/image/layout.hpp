#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <meshstage/core/identity/identity.hpp>

namespace meshstage {

/// The place of one distinct storage in an image.
struct ImageSegment {
  std::uint32_t storage = 0;  ///< Index in the order of the tree.
  std::uint64_t offset = 0;   ///< From the image's begin, bytes; a multiple of 64.
  std::uint64_t bytes = 0;    ///< Of the whole storage; may be 0.
  std::string name;  ///< Name of its safetensors entry: the first path whose tensor covers the
                     ///< storage, or a reserved name.
};

/// Storages that this rank and `rank` both have, byte for byte at every step. The borrowed ones lie
/// at the front of the image's data section, so that a replica can leave them out.
struct LoanNames {
  int rank = 0;
  std::vector<std::string> names;  ///< As ImageSegment::name, in any order.
  friend bool operator==(const LoanNames&, const LoanNames&) = default;
};

/// The smallest storage that is borrowed. For a smaller one the gap in the layout would cost more
/// than the replica saves.
inline constexpr std::uint64_t kLeastBorrowedBytes = 4096;

/// The segments of a LoanNames in a layout.
struct LoanSegments {
  int rank = 0;
  std::vector<std::size_t> segments;  ///< Indices into ImageLayout::segments, by name ascending.
};

/// The layout of an image (all offsets from its begin, in bytes) and its manifest. StagingPlan
/// makes it from the structure of a state dict; while the structure stays, every step has the same
/// layout.
///     [0, data_begin)                    manifest: the safetensors header, padded with spaces
///     [data_begin, + borrowed_bytes)     the borrowed storages by rank and name, zeros to a block
///     [.., values_begin)                 the storages, 64-byte aligned, padding between
///     [values_begin, trailer_begin)      scalars, strings and bytes
///     [trailer_begin, image_bytes)       identity and digests
struct ImageLayout {
  std::uint64_t data_begin = 0;  ///< A multiple of 4096.
  std::uint64_t values_begin = 0;
  std::uint64_t trailer_begin = 0;
  std::uint64_t image_bytes = 0;
  std::uint64_t block_bytes = 0;       ///< Unit of the block digests.
  std::uint64_t storage_bytes = 0;     ///< Sum of the segments: the state dict's own bytes.
  std::vector<ImageSegment> segments;  ///< Ascending by offset.
  std::uint64_t borrowed_bytes = 0;    ///< A multiple of block_bytes; 0 if nothing is borrowed.
  std::vector<LoanSegments> borrowed;  ///< By rank ascending; none without segments.
  /// The segments that this image lends to replicas of other ranks; by borrower ascending.
  std::vector<LoanSegments> lent;
  std::vector<std::byte> manifest;  ///< The bytes [0, data_begin).
  Digest manifest_digest;           ///< Of these.

  /// Bytes behind the manifest that block digests cover.
  [[nodiscard]] std::uint64_t digested_bytes() const noexcept { return trailer_begin - data_begin; }
};

}  // namespace meshstage
