#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/image/identity.hpp>

namespace meshstage {

// A *replica* is an image without the bytes [manifest_bytes, manifest_bytes + borrowed_bytes), the
// *gap*: the manifest, then the rest, contiguous. What lies in the gap another rank has too, and is
// taken from that rank's own image when the whole is needed again (FORMAT.md, "Borrowed storages
// and replicas"). The replica of an image that borrows nothing is the image itself. Offsets are
// those in the whole image. The bytes are treated as hostile, as in image.hpp, and only read; any
// thread.

/// As read_info(), of a replica.
MESHSTAGE_API ImageInfo read_replica_info(std::span<const std::byte> replica);

/// As verify_image(), of a replica: every byte that is in it. Whether the manifest borrows what the
/// trailer says is borrowed_parts()' to find.
MESHSTAGE_API ImageInfo verify_replica(std::span<const std::byte> replica);

/// A storage in the gap.
struct BorrowedRange {
  std::string name;          ///< Of its entry: ImageSegment::name.
  std::uint64_t offset = 0;  ///< From the whole image's begin, bytes.
  std::uint64_t bytes = 0;   ///< At least one.
  friend bool operator==(const BorrowedRange&, const BorrowedRange&) = default;
};

/// What one rank has of the gap.
struct BorrowedPart {
  int rank = 0;
  std::vector<BorrowedRange> pieces;  ///< Ascending by offset; at least one.
  friend bool operator==(const BorrowedPart&, const BorrowedPart&) = default;
};

/// Who has what lies in the gap, by rank ascending; empty if nothing is borrowed. `info` is of
/// read_info() or read_replica_info(), of these bytes. Throws CorruptData, also where the manifest
/// and `info` do not agree.
MESHSTAGE_API std::vector<BorrowedPart> borrowed_parts(std::span<const std::byte> image_or_replica,
                                                       const ImageInfo& info);

/// Bytes of an image, from its begin.
struct ImageRange {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  friend bool operator==(const ImageRange&, const ImageRange&) = default;
};

/// Where the pieces lie.
MESHSTAGE_API std::vector<ImageRange> ranges_of(const BorrowedPart& part);

/// Where the storages of these names lie in a whole image, another rank's say; nothing for a name
/// that it does not have. Their sizes are the caller's to compare. Throws CorruptData.
MESHSTAGE_API std::vector<std::optional<ImageRange>> find_ranges(
    std::span<const std::byte> image, std::span<const std::string> names);

/// Copies a replica to where its bytes belong in a whole image's memory (info.image_bytes long, or
/// longer). The gap is left as it is: copy its pieces there, and clear_borrowed_padding().
/// Throws InvalidArgument if the sizes are not those of `info`.
MESHSTAGE_API void place_replica(std::span<const std::byte> replica, const ImageInfo& info,
                                 std::span<std::byte> image);

/// Zeros what is in the gap of a whole image's memory and in none of `parts`' pieces.
/// Throws InvalidArgument for pieces that are not in the gap, or not ascending.
MESHSTAGE_API void clear_borrowed_padding(std::span<const BorrowedPart> parts,
                                          const ImageInfo& info, std::span<std::byte> image);

/// XXH3-128 of the ranges' bytes, one behind the other: two images of other layouts with the same
/// storages give the same for the same list of names. Throws InvalidArgument if a range does not
/// lie in the image.
MESHSTAGE_API Digest digest_ranges(std::span<const std::byte> image,
                                   std::span<const ImageRange> ranges);

/// What an image borrows and lends, as its trailer says; by rank ascending.
struct Loans {
  std::vector<Loan> borrowed;  ///< What its replicas borrow, by lender.
  std::vector<Loan> lent;      ///< What it lends to replicas, by borrower.
  friend bool operator==(const Loans&, const Loans&) = default;
};
/// Reads no more than read_info() does. Throws CorruptData.
MESHSTAGE_API Loans read_loans(std::span<const std::byte> image);
MESHSTAGE_API Loans read_replica_loans(std::span<const std::byte> replica);
/// The same of either, of which `info` was read; and that its manifest names the same ranks.
MESHSTAGE_API Loans checked_loans(std::span<const std::byte> image_or_replica,
                                  const ImageInfo& info);

}  // namespace meshstage
