#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/image/identity.hpp>

/// How one image travels over a process group: in pieces, a window of them in flight, each digested
/// as it arrives. Both ends must have agreed on the sizes by a message before (Offer and Accept, or
/// the choice of a recovery): Gloo ends the process on a wrong length.
namespace meshstage::exchange {

/// Pieces in flight each way; with 4 MiB blocks the best that was measured on loopback.
inline constexpr std::size_t kWindow = 8;

/// A range of the image, bytes.
struct Piece {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  friend bool operator==(const Piece&, const Piece&) = default;
};

/// What both ends know before the first piece leaves.
struct Shape {
  std::uint64_t image_bytes = 0;
  std::uint64_t manifest_bytes = 0;
  std::uint64_t block_bytes = 0;
  bool with_manifest = true;  ///< False if the receiver's slot already holds the same manifest.
  /// Ranges that do not travel because the receiver has said that it has them: ascending, apart
  /// from each other, not empty, between manifest and trailer, at most kMostPresent.
  std::vector<Piece> present;
  friend bool operator==(const Shape&, const Shape&) = default;
};

/// Sent over the control link just before the pieces of one image: "they come now". Until it has
/// arrived the receiver posts nothing, so an image that never comes leaves no receive behind; after
/// it the receiver takes every piece, if need be into scratch memory, so the stream stays in step.
struct StreamStart {
  std::uint64_t generation = 0;
  int owner = 0;  ///< Whose image.
  ImageId id;
  Shape shape;
  friend bool operator==(const StreamStart&, const StreamStart&) = default;
};

/// u32 magic "MSPX" | u16 version | u16 0 | u64 generation | u64 owner | u64 id generation | u64
/// step | u64 image bytes | u64 manifest bytes | u64 block bytes | u64 with manifest (0 or 1) | u64
/// ranges present | u64 offset, u64 bytes of each; little-endian.
[[nodiscard]] std::vector<std::byte> encode(const StreamStart& start);
/// True if the bytes begin as a StreamStart does (else they are a protocol message).
[[nodiscard]] bool is_stream_start(std::span<const std::byte> bytes) noexcept;
/// Throws CorruptData naming the field. Sizes are checked for sense, not for being expected.
[[nodiscard]] StreamStart decode_stream_start(std::span<const std::byte> bytes, int from,
                                              int world_size);

/// Sent by a holder to its ward just before it accepts an image: "leave these ranges out, I have
/// the same bytes in my own image of that step". Only what the holder has proven wrong by the
/// image's digests could then be missing, and it never counts such an image as whole.
struct Present {
  std::uint64_t generation = 0;
  ImageId id;
  std::vector<Piece> ranges;  ///< Of the ward's image: as Shape::present.
  friend bool operator==(const Present&, const Present&) = default;
};
/// More would make a message, and pieces, that cost more than they spare.
inline constexpr std::size_t kMostPresent = 4096;

/// u32 magic "MSPP" | u16 version | u16 0 | u64 generation | u64 id generation | u64 step | u64
/// ranges | u64 offset, u64 bytes of each; little-endian.
[[nodiscard]] std::vector<std::byte> encode(const Present& present);
[[nodiscard]] bool is_present(std::span<const std::byte> bytes) noexcept;
/// Throws CorruptData naming the field.
[[nodiscard]] Present decode_present(std::span<const std::byte> bytes, int from);
/// `ranges` fit an image of this shape (see Shape::present).
[[nodiscard]] bool fits(const std::vector<Piece>& ranges, const Shape& shape);

/// The pieces in the order of their offsets: the manifest (unless the receiver has it), then one
/// for each block of the data section, the last of them with the trailer; less what is present.
/// Throws InvalidArgument on sizes that contradict each other.
[[nodiscard]] std::vector<Piece> pieces_of(const Shape& shape);

/// One end's transfer. `on_piece(i, n)` hears of piece i of n (from 1) once it has left or arrived.
struct Link {
  ProcessGroup& group;
  int peer = 0;
  std::uint64_t tag = 0;
  std::chrono::milliseconds stall{
      30'000};  ///< Timeout naming the peer after so long without a piece.
  std::function<void(std::uint64_t, std::uint64_t)> on_piece;
};

/// Sends `image`. Before a piece leaves, `wait_final(end)` blocks until the bytes up to `end` are
/// final; what it throws ends the transfer. Throws what Transfer::wait throws.
void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final);

/// Takes all pieces of an image that nobody wants any more, into scratch memory of one piece.
void drain_image(const Link& link, const Shape& shape);

/// Receives into `image` (image_bytes long) and proves it: manifest digest, every block against the
/// trailer's table, the trailer itself; the identity must be `expected`. Returns what the image
/// says of itself. Nothing may be present. Throws CorruptData naming rank, step and tensor, or what
/// Transfer::wait throws.
[[nodiscard]] ImageInfo receive_image(const Link& link, std::span<std::byte> image,
                                      const Shape& shape, const Digest& manifest_digest,
                                      const ImageIdentity& expected);

/// Receives what travels of an image, and proves nothing: what is present is still to be filled in.
void receive_pieces(const Link& link, std::span<std::byte> image, const Shape& shape);
/// The proof of receive_image() for an image that was completed since.
[[nodiscard]] ImageInfo prove_image(int from, std::span<const std::byte> image,
                                    const Digest& manifest_digest, const ImageIdentity& expected);

}  // namespace meshstage::exchange
