#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/image/replica.hpp>

namespace meshstage::detail {

/// Writes the trailer at the image's end; `info` must be complete except for image_digest, which
/// this sets. Throws InvalidArgument for an identity that does not fit.
void write_trailer(std::span<std::byte> image, std::span<const std::uint64_t> block_digests,
                   const Loans& loans, ImageInfo& info);

/// Whether bytes are a whole image or its replica.
enum class Form : std::uint8_t { kImage, kReplica };

/// A trailer whose digest and sizes are right.
struct Trailer {
  ImageInfo info;
  std::uint64_t begin = 0;             ///< From the whole image's begin.
  std::span<const std::byte> digests;  ///< 8 bytes for each block of the whole image.
  std::uint64_t gap = 0;               ///< Bytes left out behind the manifest: 0 in a whole image.
  std::span<const std::byte> loans;    ///< kLoanBytes each (FORMAT.md).
};
/// Throws CorruptData, also for an image of the other form.
Trailer read_trailer(std::span<const std::byte> bytes, Form form = Form::kImage);
/// Throws CorruptData.
Loans decode_loans(const Trailer& trailer);

}  // namespace meshstage::detail
