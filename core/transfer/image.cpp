#include <meshstage/core/transfer/image.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <string>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/transfer/moving_impl.hpp>

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

/// The block that a piece is, if it is a block and nothing else: those may stay.
std::optional<std::size_t> block_of(const Shape& shape, std::uint64_t digested,
                                    const Piece& piece) {
  if (shape.borrowed_bytes != 0 || piece.offset < shape.manifest_bytes) return std::nullopt;
  const std::uint64_t at = piece.offset - shape.manifest_bytes;
  if (piece.bytes != shape.block_bytes || at > digested || digested - at < piece.bytes) {
    return std::nullopt;
  }
  return at / shape.block_bytes;
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
  send_image(link, image, shape, wait_final, Offered());
}

void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final, const Offered& offered) {
  check_memory(image.size(), shape);
  const auto pieces = pieces_of(shape);
  const auto digested = digested_bytes(shape);
  const auto is_there = [&](const Piece& piece) {
    wait_final(piece.offset + piece.bytes);
    const auto block = block_of(shape, digested, piece);
    return block && *block < offered.held.size() &&
           stays(offered.held[*block], offered.mine(*block));
  };
  PieceSource all{pieces.size(), {}, [&](std::size_t i, std::size_t) {
                    wait_final(pieces[i].offset + pieces[i].bytes);
                    return place_of(image, shape, pieces[i]);
                  }};
  if (!offered.held.empty()) {
    all.stays = [&](std::size_t i) {
      if (!is_there(pieces[i])) return false;
      if (offered.stayed) offered.stayed(pieces[i].bytes);
      return true;
    };
  }
  send(link, all);
}

void drain_image(const Link& link, const Shape& shape, bool masked) {
  const auto pieces = pieces_of(shape);
  std::uint64_t largest = 0;
  for (const auto& piece : pieces) largest = std::max(largest, piece.bytes);
  std::vector<std::vector<std::byte>> memory(places(link));
  PieceTarget all{pieces.size(),
                  [&](std::size_t i, std::size_t place) {
                    memory[place].resize(largest);  // no other piece in flight has this place
                    return std::span(memory[place]).first(pieces[i].bytes);
                  },
                  {},
                  {}};
  if (masked) all.stayed = [](std::size_t) {};
  receive(link, all);
}

ImageInfo receive_image(const Link& link, std::span<std::byte> image, const Shape& shape,
                        const Digest& manifest_digest, const ImageIdentity& expected) {
  Holding nothing;
  return receive_image(link, image, shape, manifest_digest, expected, nothing);
}

ImageInfo receive_image(const Link& link, std::span<std::byte> image, const Shape& shape,
                        const Digest& manifest_digest, const ImageIdentity& expected,
                        Holding& holding) {
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
  const auto& held = holding.held;
  // Several threads receive where there are several connections.
  Mutex wrong_mutex;
  std::string wrong;
  std::atomic<std::uint64_t> kept_bytes{0};
  const auto found_wrong = [&](std::string what) {
    const MutexLock lock(wrong_mutex);
    wrong = std::move(what);
  };
  const auto stayed = [&](const Piece& piece) {
    const auto block = block_of(shape, digested, piece);
    if (!block || *block >= held.blocks.size()) {
      found_wrong("bytes " + std::to_string(piece.offset) + " to " +
                  std::to_string(piece.offset + piece.bytes) + " are not here and were not sent");
      return;
    }
    const Digest& known = held.blocks[*block];
    if ((*block + held.times_kept) % kVerifyOneIn == 0 &&
        digest_block(place_of(image, shape, piece)) != known) {
      found_wrong("block " + std::to_string(*block) + " has changed since it was received");
    }
    digests.put(*block, known);
    kept_bytes += piece.bytes;
  };
  const auto came = [&](const Piece& piece) {
    if (!by_blocks || piece.offset < shape.manifest_bytes) return;
    const auto block = (piece.offset - shape.manifest_bytes) / shape.block_bytes;
    if (block < digests.block_count()) {
      digests.add(block, place_of(image, shape, {piece.offset, digests.block_size(block)}));
    }
  };
  // Blocks are digested while later ones are still on their way. Nothing is judged before every
  // piece has come: the sender's stream must end at a piece's end, whatever is wrong with it.
  PieceTarget all{pieces.size(),
                  [&](std::size_t i, std::size_t) { return place_of(image, shape, pieces[i]); },
                  [&](std::size_t i, std::size_t) { came(pieces[i]); },
                  {}};
  if (holding.masked) all.stayed = [&](std::size_t i) { stayed(pieces[i]); };
  receive(link, all);
  holding.kept_bytes += kept_bytes;
  if (!wrong.empty()) {
    throw make_error<CorruptData>(
        "the replica from rank " + std::to_string(link.peer) + ": " + wrong, link.peer,
        expected.id.step);
  }
  const ImageInfo said = whole ? read_info(image) : read_replica_info(image);
  const bool as_digested = by_blocks && said.block_bytes == shape.block_bytes;
  const ImageInfo info = !as_digested ? (whole ? verify_image(image) : verify_replica(image))
                         : whole      ? check_blocks(image, digests)
                                      : check_replica_blocks(image, digests);
  check_identity(link.peer, info, manifest_digest, expected);
  if (as_digested && whole) {
    holding.blocks.resize(digested / shape.block_bytes);
    for (std::size_t i = 0; i < holding.blocks.size(); ++i) holding.blocks[i] = digests.digest(i);
  }
  return info;
}

void receive_pieces(const Link& link, std::span<std::byte> image, const Shape& shape) {
  check_memory(image.size(), shape);
  const auto pieces = pieces_of(shape);
  receive(link, {pieces.size(),
                 [&](std::size_t i, std::size_t) { return place_of(image, shape, pieces[i]); },
                 {},
                 {}});
}

ImageInfo prove_image(int from, std::span<const std::byte> image, const Digest& manifest_digest,
                      const ImageIdentity& expected) {
  const ImageInfo info = verify_image(image);
  check_identity(from, info, manifest_digest, expected);
  return info;
}

}  // namespace meshstage::transfer
