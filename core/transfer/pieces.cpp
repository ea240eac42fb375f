#include <meshstage/core/transfer/pieces.hpp>

#include <algorithm>
#include <string>

#include <meshstage/core/error/error.hpp>

namespace meshstage::transfer {

void check(const Shape& shape) {
  if (shape.block_bytes == 0 || shape.manifest_bytes > shape.image_bytes ||
      shape.image_bytes > kMostBytes) {
    throw InvalidArgument("an image of " + std::to_string(shape.image_bytes) +
                          " bytes with a manifest of " + std::to_string(shape.manifest_bytes) +
                          " in blocks of " + std::to_string(shape.block_bytes) + " makes no sense");
  }
  if (shape.borrowed_bytes > shape.image_bytes - shape.manifest_bytes) {
    throw InvalidArgument(std::to_string(shape.borrowed_bytes) + " borrowed bytes in an image of " +
                          std::to_string(shape.image_bytes) + " make no sense");
  }
}

std::vector<Piece> pieces_of(const Shape& shape) {
  check(shape);
  std::vector<Piece> pieces;
  const auto add = [&](std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t at = begin; at < end; at += shape.block_bytes) {
      pieces.push_back({at, std::min(end - at, shape.block_bytes)});
    }
  };
  if (shape.with_manifest) add(0, shape.manifest_bytes);
  add(shape.manifest_bytes + shape.borrowed_bytes, shape.image_bytes);
  return pieces;
}

}  // namespace meshstage::transfer
