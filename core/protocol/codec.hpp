#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/protocol/messages.hpp>

/// The bytes of a protocol message on a control link. Little-endian:
///
///     u32 magic "MSPM" | u16 version | u16 kind (index in Body) | u64 job tag | u32 world size |
///     u32 sender | u64 generation | body
///
/// Strings and lists begin with a u32 count, which is checked against the bytes left before
/// anything is allocated. Nothing may follow the body.
///
/// On the link each message is followed by a u64, the digest64 of its bytes. It tells a message
/// that changed on the way from a message that the peer should not have sent. The first counts as
/// lost and ends the generation; the second is refused and changes nothing.
namespace meshstage::protocol {

/// A job's ranks run one build, so no older version is read. 3: stream starts and wants are
/// messages; votes carry wishes, and Complete carries orders. 4: claims to stray vaults; an Accept
/// may say which blocks the slot holds, a StreamStart that masks say which travel; Overdue. 5:
/// Publish and Published. 6: a Published says whose images were written. 7: AskDisk::up_to.
/// 8: Moved. 9: StreamStart::connections. 10: Ready and Publish may have a mismatch;
/// a claim may lie where images are kept (Place::kKept).
inline constexpr std::uint16_t kWireVersion = 10;
inline constexpr std::size_t kWireHeaderBytes = 32;
/// The bytes that a claim takes in a message.
[[nodiscard]] MESHSTAGE_API std::size_t encoded_bytes(const Claim& claim) noexcept;
/// A Want's body has kWantBytes, kNamedStorageBytes for each storage, and the names.
inline constexpr std::size_t kWantBytes = 16 + 4;
inline constexpr std::size_t kNamedStorageBytes = 8 + 4;
/// No image is larger than this, so sizes from the wire cannot make sums wrap.
inline constexpr std::uint64_t kMostImageBytes = std::uint64_t{1} << 56U;

/// The job of a message: encode() writes it and decode() checks it.
struct WireContext {
  std::uint64_t job_tag = 0;  ///< a hash of the job id, so that messages of two jobs never mix
  int world_size = 1;
};

inline constexpr std::size_t kWireDigestBytes = 8;

/// The message with its digest behind it, as it goes onto the link.
[[nodiscard]] MESHSTAGE_API std::vector<std::byte> with_digest(std::vector<std::byte> message);
/// The message without its digest, a view into `bytes`; nothing if the bytes have changed on the
/// way.
[[nodiscard]] MESHSTAGE_API std::optional<std::span<const std::byte>> without_digest(
    std::span<const std::byte> bytes) noexcept;

[[nodiscard]] MESHSTAGE_API std::vector<std::byte> encode(const WireContext& context, int sender,
                                                          const Message& message);

/// Reads a message that came over the link to `sender`. Treats the bytes as hostile: bounded
/// memory, every rank in it lies in [0, world size), every enumerator is known.
/// \throws CorruptData naming the sender and the field ("offer from rank 2: image bytes ...").
[[nodiscard]] MESHSTAGE_API Message decode(const WireContext& context, int sender,
                                           std::span<const std::byte> bytes);

}  // namespace meshstage::protocol
