#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/transfer/pieces.hpp>

/// The messages that go before the streams of core/transfer.
namespace meshstage::exchange {

using transfer::Shape;

/// What the pieces of a stream are.
enum class Content : std::uint8_t {
  kImage,  ///< An image or a replica.
  kLent,   ///< What the receiver's own image borrows: the ranges of a Want, one behind the
           ///< other.
};

/// Sent over the control link just before the pieces of one image: "they come now". Until it has
/// arrived the receiver posts nothing, so an image that never comes leaves no receive behind; after
/// it the receiver takes every piece, if need be into scratch memory, so the stream stays in step.
struct StreamStart {
  std::uint64_t generation = 0;
  int owner = 0;  ///< Whose image.
  ImageId id;
  Shape shape;  ///< kLent: so many image_bytes, in blocks; nothing else.
  Content content = Content::kImage;
  friend bool operator==(const StreamStart&, const StreamStart&) = default;
};

/// u32 magic "MSPX" | u16 version | u16 0 | u64 generation | u64 owner | u64 id generation | u64
/// step | u64 image bytes | u64 manifest bytes | u64 block bytes | u64 with manifest (0 or 1) | u64
/// borrowed bytes | u64 loans | u64 content; little-endian.
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

/// Sent by an owner that fetches a replica to a lender: "send me these of your own image of that
/// step". Answered by a stream of kLent.
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

/// Of these names as many as fit one message, first in order: a borrower borrows no more from one
/// lender, and that lender expects no more.
[[nodiscard]] std::vector<std::string> names_for_a_want(std::vector<std::string> names);

}  // namespace meshstage::exchange
