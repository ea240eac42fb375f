#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/image/replica.hpp>

/// How one image travels over a process group: in pieces, a window of them in flight, each digested
/// as it arrives. Both ends must have agreed on the sizes by a message before (Offer and Accept, or
/// the choice of a recovery): Gloo ends the process on a wrong length.
namespace meshstage::exchange {

/// Pieces in flight each way; with 4 MiB blocks the best that was measured on loopback.
inline constexpr std::size_t kWindow = 8;

/// What travels at a time.
using Piece = ImageRange;

/// What both ends know before the first piece leaves.
struct Shape {
  std::uint64_t image_bytes = 0;
  std::uint64_t manifest_bytes = 0;
  std::uint64_t block_bytes = 0;
  bool with_manifest = true;  ///< False if the receiver's slot already holds the same manifest.
  std::uint64_t shared_bytes = 0;  ///< 0, or ImageInfo::shared_bytes: a replica travels, without.
  std::uint32_t shares = 0;        ///< As ImageInfo::shares.
  friend bool operator==(const Shape&, const Shape&) = default;
};

/// What the pieces of a stream are.
enum class Content : std::uint8_t {
  kImage,   ///< An image or a replica.
  kCommon,  ///< What completes the receiver's own image: the ranges of a Want, one behind the
            ///< other.
};

/// Sent over the control link just before the pieces of one image: "they come now". Until it has
/// arrived the receiver posts nothing, so an image that never comes leaves no receive behind; after
/// it the receiver takes every piece, if need be into scratch memory, so the stream stays in step.
struct StreamStart {
  std::uint64_t generation = 0;
  int owner = 0;  ///< Whose image.
  ImageId id;
  Shape shape;  ///< kCommon: so many image_bytes, in blocks; nothing else.
  Content content = Content::kImage;
  friend bool operator==(const StreamStart&, const StreamStart&) = default;
};

/// u32 magic "MSPX" | u16 version | u16 0 | u64 generation | u64 owner | u64 id generation | u64
/// step | u64 image bytes | u64 manifest bytes | u64 block bytes | u64 with manifest (0 or 1) | u64
/// shared bytes | u64 shares | u64 content; little-endian.
[[nodiscard]] std::vector<std::byte> encode(const StreamStart& start);
/// True if the bytes begin as a StreamStart does (else they are something else).
[[nodiscard]] bool is_stream_start(std::span<const std::byte> bytes) noexcept;
/// Throws CorruptData naming the field. Sizes are checked for sense, not for being expected.
[[nodiscard]] StreamStart decode_stream_start(std::span<const std::byte> bytes, int from,
                                              int world_size);

/// A storage by its name in an image's header.
struct Named {
  std::string name;
  std::uint64_t bytes = 0;
  friend bool operator==(const Named&, const Named&) = default;
};

/// Sent by an owner that fetches a replica to a rank that completes it: "send me these of your own
/// image of that step". Answered by a stream of kCommon.
struct Want {
  std::uint64_t generation = 0;
  ImageId id;
  std::vector<Named> storages;  ///< In the order in which they are to come.
  friend bool operator==(const Want&, const Want&) = default;
};

/// u32 magic "MSPW" | u16 version | u16 0 | u64 generation | u64 id generation | u64 step | u64
/// storages | u64 bytes, u64 length of the name, the name of each; little-endian.
[[nodiscard]] std::vector<std::byte> encode(const Want& want);
[[nodiscard]] bool is_want(std::span<const std::byte> bytes) noexcept;
/// Throws CorruptData naming the field.
[[nodiscard]] Want decode_want(std::span<const std::byte> bytes, int from);

/// Of these names as many as fit one message, first in order: an owner leaves out no more on one
/// rank's account, and that rank counts on no more.
[[nodiscard]] std::vector<std::string> names_for_a_want(std::vector<std::string> names);

/// The pieces in the order of their offsets (in the whole image): the manifest (unless the receiver
/// has it), then one for each block of the data section, the last of them with the trailer; in a
/// replica those behind the shared bytes. Throws InvalidArgument on sizes that contradict each
/// other.
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

/// Sends `image`, which is the whole image or its replica (by its length; only a replica may travel
/// from one). Before a piece leaves, `wait_final(end)` blocks until the bytes up to `end`, counted
/// in the whole image, are final; what it throws ends the transfer. Throws what Transfer::wait
/// throws.
void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final);

/// Takes all pieces of an image that nobody wants any more, into scratch memory of one piece.
void drain_image(const Link& link, const Shape& shape);

/// Receives into `image` (as long as what travels) and proves it: manifest digest, every block
/// against the trailer's table, the trailer itself; the identity must be `expected`. Returns what
/// the image says of itself. Throws CorruptData naming rank, step and tensor, or what
/// Transfer::wait throws.
[[nodiscard]] ImageInfo receive_image(const Link& link, std::span<std::byte> image,
                                      const Shape& shape, const Digest& manifest_digest,
                                      const ImageIdentity& expected);

/// Receives a replica to its places in the memory of a whole image, and proves nothing: what it
/// leaves out is still to come.
void receive_pieces(const Link& link, std::span<std::byte> image, const Shape& shape);
/// The proof of receive_image() for a whole image that was completed since.
[[nodiscard]] ImageInfo prove_image(int from, std::span<const std::byte> image,
                                    const Digest& manifest_digest, const ImageIdentity& expected);

/// Sends ranges of an image, or receives into them, one behind the other in pieces of
/// `block_bytes`: both ends must have agreed on the sizes of the ranges. Throws InvalidArgument if
/// one does not lie in the image, or what Transfer::wait throws.
void send_ranges(const Link& link, std::span<const std::byte> image,
                 const std::vector<Piece>& ranges, std::uint64_t block_bytes);
void receive_ranges(const Link& link, std::span<std::byte> image, const std::vector<Piece>& ranges,
                    std::uint64_t block_bytes);

}  // namespace meshstage::exchange
