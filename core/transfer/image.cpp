#include <meshstage/core/transfer/image.hpp>

#include <algorithm>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/transfer/window_impl.hpp>

namespace meshstage::transfer {
namespace {

/// Bytes of the data section before the trailer, whose size grows with their number of blocks.
std::uint64_t digested_bytes(const Shape& shape) {
  const std::uint64_t data_bytes = shape.image_bytes - shape.manifest_bytes;
  std::uint64_t digested = data_bytes;
  for (int round = 0; round < 4; ++round) {
    const std::uint64_t trailer = trailer_size(digested, shape.block_bytes, shape.loans);
    if (trailer > data_bytes) throw CorruptData("an image too small for its trailer");
    digested = data_bytes - trailer;
  }
  return digested;
}

/// Where a piece lies in the memory of an image or of its replica.
template <class Byte>
std::span<Byte> place_of(std::span<Byte> image, const Shape& shape, const Piece& piece) {
  const std::uint64_t gap = image.size() == shape.image_bytes ? 0 : shape.borrowed_bytes;
  return image.subspan(piece.offset - (piece.offset < shape.manifest_bytes ? 0 : gap), piece.bytes);
}

void check_memory(std::size_t bytes, const Shape& shape) {
  if (bytes == shape.image_bytes || bytes == shape.image_bytes - shape.borrowed_bytes) return;
  throw InvalidArgument("an image of " + std::to_string(shape.image_bytes) + " bytes, " +
                        std::to_string(shape.borrowed_bytes) + " of which do not travel, in " +
                        std::to_string(bytes) + " bytes of memory");
}

void check_identity(int from, const ImageInfo& info, const Digest& manifest_digest,
                    const ImageIdentity& expected) {
  if (info.manifest_digest != manifest_digest) {
    throw make_error<CorruptData>(
        "the manifest from rank " + std::to_string(from) + " is not the one that was announced",
        from, expected.id.step);
  }
  if (info.identity != expected) {
    throw make_error<CorruptData>("rank " + std::to_string(from) + " sent " +
                                      to_string(info.identity) + " instead of " +
                                      to_string(expected),
                                  from, expected.id.step);
  }
}

}  // namespace

void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final) {
  check_memory(image.size(), shape);
  const auto pieces = pieces_of(shape);
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        wait_final(pieces[i].offset + pieces[i].bytes);
        return link.group.send(link.peer, link.tag, place_of(image, shape, pieces[i]));
      },
      [](std::size_t) {});
}

void drain_image(const Link& link, const Shape& shape) {
  const auto pieces = pieces_of(shape);
  std::uint64_t largest = 0;
  for (const auto& piece : pieces) largest = std::max(largest, piece.bytes);
  std::vector<std::byte> scratch(largest);
  for (const auto& piece : pieces) {
    link.group.receive(link.peer, link.tag, std::span(scratch).first(piece.bytes))
        ->wait_while_moving(link.stall);
  }
}

ImageInfo receive_image(const Link& link, std::span<std::byte> image, const Shape& shape,
                        const Digest& manifest_digest, const ImageIdentity& expected) {
  if (image.size() != shape.image_bytes - shape.borrowed_bytes) {
    throw InvalidArgument("an image of " +
                          std::to_string(shape.image_bytes - shape.borrowed_bytes) +
                          " bytes is received into " + std::to_string(image.size()));
  }
  const auto pieces = pieces_of(shape);
  // A job may come back with another block size than its images were made with. Then pieces need
  // not be blocks, and the image is digested once it is there.
  const bool whole = shape.borrowed_bytes == 0;
  const auto digested = digested_bytes(shape);
  const bool by_blocks =
      shape.borrowed_bytes % shape.block_bytes == 0 && shape.borrowed_bytes <= digested;
  BlockDigests digests;
  if (by_blocks) {
    digests = BlockDigests(shape.block_bytes, digested, shape.borrowed_bytes / shape.block_bytes);
  }
  // Blocks are digested while later ones are still on their way. Nothing is judged before every
  // piece has come: the sender's stream must end at a piece's end, whatever is wrong with it.
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        return link.group.receive(link.peer, link.tag, place_of(image, shape, pieces[i]));
      },
      [&](std::size_t i) {
        if (!by_blocks || pieces[i].offset < shape.manifest_bytes) return;
        const auto block = (pieces[i].offset - shape.manifest_bytes) / shape.block_bytes;
        if (block < digests.block_count()) {
          digests.add(block, place_of(image, shape, {pieces[i].offset, digests.block_size(block)}));
        }
      });
  const ImageInfo said = whole ? read_info(image) : read_replica_info(image);
  const ImageInfo info = !by_blocks || said.block_bytes != shape.block_bytes
                             ? (whole ? verify_image(image) : verify_replica(image))
                         : whole ? check_blocks(image, digests)
                                 : check_replica_blocks(image, digests);
  check_identity(link.peer, info, manifest_digest, expected);
  return info;
}

void receive_pieces(const Link& link, std::span<std::byte> image, const Shape& shape) {
  check_memory(image.size(), shape);
  const auto pieces = pieces_of(shape);
  Window(link).run(
      pieces,
      [&](std::size_t i) {
        return link.group.receive(link.peer, link.tag, place_of(image, shape, pieces[i]));
      },
      [](std::size_t) {});
}

ImageInfo prove_image(int from, std::span<const std::byte> image, const Digest& manifest_digest,
                      const ImageIdentity& expected) {
  const ImageInfo info = verify_image(image);
  check_identity(from, info, manifest_digest, expected);
  return info;
}

}  // namespace meshstage::transfer
