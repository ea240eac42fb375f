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
/// Strings and lists carry a u32 count, checked against what can still follow before anything is
/// allocated. Nothing may follow the body.
///
/// On the link each message is followed by a u64, the digest64 of its bytes: what changed on the
/// way is told from what a peer should not have said. The first is a message lost, and ends the
/// generation; the second is refused, and changes nothing.
namespace meshstage::protocol {

/// A job's ranks run one build, so no older version is read. 3: stream starts and wants are
/// messages; votes carry wishes, and what is complete carries orders.
inline constexpr std::uint16_t kWireVersion = 3;
inline constexpr std::size_t kWireHeaderBytes = 32;
/// What a claim takes in a message.
[[nodiscard]] MESHSTAGE_API std::size_t encoded_bytes(const Claim& claim) noexcept;
/// A Want's body: so much, and so much for each storage, and the names.
inline constexpr std::size_t kWantBytes = 16 + 4;
inline constexpr std::size_t kNamedStorageBytes = 8 + 4;
/// No image is larger, so sizes from the wire cannot make sums wrap.
inline constexpr std::uint64_t kMostImageBytes = std::uint64_t{1} << 56U;

/// Who talks: put into each message and checked in each that arrives.
struct WireContext {
  std::uint64_t job_tag = 0;  ///< a hash of the job id, so that two jobs never mix
  int world_size = 1;
};

inline constexpr std::size_t kWireDigestBytes = 8;

/// The message as it goes onto the link: with its digest behind it.
[[nodiscard]] MESHSTAGE_API std::vector<std::byte> with_digest(std::vector<std::byte> message);
/// The message that came, a view into `bytes`; nothing if it is not what was sent.
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
