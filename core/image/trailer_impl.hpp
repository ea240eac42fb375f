#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include <meshstage/core/image/identity.hpp>

namespace meshstage::detail {

/// Writes the trailer at the image's end; `info` is complete but for image_digest, which is set.
/// Throws InvalidArgument for an identity that does not fit.
void write_trailer(std::span<std::byte> image, std::span<const std::uint64_t> block_digests,
                   ImageInfo& info);

/// A trailer whose digest and sizes are right.
struct Trailer {
  ImageInfo info;
  std::uint64_t begin = 0;             ///< From the image's begin.
  std::span<const std::byte> digests;  ///< 8 bytes each.
};
/// Throws CorruptData.
Trailer read_trailer(std::span<const std::byte> image);

}  // namespace meshstage::detail
