#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/identity/identity.hpp>

namespace meshstage {

// A *replica* is an image without the bytes [manifest_bytes, manifest_bytes + borrowed_bytes), the
// *gap*: the manifest, and contiguous behind it the rest. Another rank has the bytes of the gap
// too, and its own image gives them when the whole image is needed again (FORMAT.md, "Borrowed
// storages and replicas"). The replica of an image that borrows nothing is the image itself.
// Offsets are those in the whole image. The functions treat the bytes as hostile, like image.hpp,
// and only read them. Threads: any.

/// read_info() for a replica.
MESHSTAGE_API ImageInfo read_replica_info(std::span<const std::byte> replica);

/// verify_image() for a replica: checks every byte of it. borrowed_parts() checks that manifest and
/// trailer agree on the borrowed storages.
MESHSTAGE_API ImageInfo verify_replica(std::span<const std::byte> replica);

/// A storage in the gap.
struct BorrowedRange {
  std::string name;          ///< ImageSegment::name.
  std::uint64_t offset = 0;  ///< From the whole image's begin, bytes.
  std::uint64_t bytes = 0;   ///< At least one.
  friend bool operator==(const BorrowedRange&, const BorrowedRange&) = default;
};

/// The part of the gap that one rank has.
struct BorrowedPart {
  int rank = 0;
  std::vector<BorrowedRange> pieces;  ///< Ascending by offset; at least one.
  friend bool operator==(const BorrowedPart&, const BorrowedPart&) = default;
};

/// The parts of the gap, one for each rank that has one, ascending; empty if nothing is borrowed.
/// `info` comes from read_info() or read_replica_info() of these bytes. Throws CorruptData, also if
/// the manifest and `info` do not agree.
MESHSTAGE_API std::vector<BorrowedPart> borrowed_parts(std::span<const std::byte> image_or_replica,
                                                       const ImageInfo& info);

/// Bytes of an image, from its begin.
struct ImageRange {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  friend bool operator==(const ImageRange&, const ImageRange&) = default;
};

/// The ranges of the part's pieces.
MESHSTAGE_API std::vector<ImageRange> ranges_of(const BorrowedPart& part);

/// Finds the storages with these names in a whole image, which may be another rank's; nothing for a
/// name that the image does not have. The caller must compare the sizes. Throws CorruptData.
MESHSTAGE_API std::vector<std::optional<ImageRange>> find_ranges(
    std::span<const std::byte> image, std::span<const std::string> names);

/// Copies a replica's bytes to their places in a whole image's memory (at least info.image_bytes
/// long). Leaves the gap as it is: copy the gap's pieces into it, and call
/// clear_borrowed_padding().
/// Throws InvalidArgument if the sizes are not those of `info`.
MESHSTAGE_API void place_replica(std::span<const std::byte> replica, const ImageInfo& info,
                                 std::span<std::byte> image);

/// Writes zeros to the bytes of a whole image's gap that are in none of `parts`' pieces.
/// Throws InvalidArgument for pieces that are not in the gap, or not ascending.
MESHSTAGE_API void clear_borrowed_padding(std::span<const BorrowedPart> parts,
                                          const ImageInfo& info, std::span<std::byte> image);

/// XXH3-128 of the ranges' bytes, one behind the other. Images with different layouts but the same
/// storages give the same digest for the same list of names. Throws InvalidArgument if a range does
/// not lie in the image.
MESHSTAGE_API Digest digest_ranges(std::span<const std::byte> image,
                                   std::span<const ImageRange> ranges);

/// The loans in the trailer of an image or a replica.
/// Both read no more than read_info() does. Throws CorruptData.
MESHSTAGE_API Loans read_loans(std::span<const std::byte> image);
MESHSTAGE_API Loans read_replica_loans(std::span<const std::byte> replica);
/// Reads the loans of an image or a replica whose ImageInfo is `info`, and checks that the manifest
/// names the same ranks. Throws CorruptData.
MESHSTAGE_API Loans checked_loans(std::span<const std::byte> image_or_replica,
                                  const ImageInfo& info);

}  // namespace meshstage
