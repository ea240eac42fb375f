#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/image/replica.hpp>

/// Images and parts of images travel over a process group in pieces, with a window of pieces in
/// flight. Both ends must first agree on the sizes by a message, because messages of unequal length
/// never meet (core/comm/gloo/group.hpp).
namespace meshstage::transfer {

/// Pieces in flight each way; with 4 MiB blocks the fastest that was measured on loopback.
inline constexpr std::size_t kWindow = 8;

/// No image is larger than this, so sizes from the wire cannot make sums wrap.
inline constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 56;

/// The bytes that travel as one message.
using Piece = ImageRange;

/// The sizes that both ends know before the first piece leaves.
struct Shape {
  std::uint64_t image_bytes = 0;
  std::uint64_t manifest_bytes = 0;
  std::uint64_t block_bytes = 0;
  bool with_manifest = true;  ///< False if the receiver's slot has the same manifest already.
  std::uint64_t borrowed_bytes = 0;  ///< 0: a whole image; else a replica without these bytes.
  std::uint32_t loans = 0;           ///< As ImageInfo::loans.
  friend bool operator==(const Shape&, const Shape&) = default;
};

/// Throws InvalidArgument on sizes that contradict each other.
void check(const Shape& shape);

/// The pieces, ascending by their offsets in the whole image. The manifest comes first, unless the
/// receiver has it; then one piece for each block of the data section, the last one with the
/// trailer. A replica has only the blocks behind the borrowed bytes. Throws what check() throws.
[[nodiscard]] std::vector<Piece> pieces_of(const Shape& shape);

/// One end of a transfer. It calls `on_piece(i, n)` when piece i of n (from 1) has left or arrived.
struct Link {
  ProcessGroup& group;
  int peer = 0;
  std::uint64_t tag = 0;
  std::chrono::milliseconds stall{
      30'000};  ///< Without a byte for so long: PeerSilent naming the peer.
  std::function<void(std::uint64_t, std::uint64_t)> on_piece;
  unsigned connections = 0;  ///< So many of the group's connections are used, on both ends; 0: all.
};

}  // namespace meshstage::transfer
