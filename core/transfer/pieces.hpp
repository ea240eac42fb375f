#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/image/replica.hpp>

/// How images and parts of images travel over a process group: in pieces, a window of them in
/// flight. Both ends must have agreed on the sizes by a message before: Gloo ends the process on a
/// wrong length.
namespace meshstage::transfer {

/// Pieces in flight each way; with 4 MiB blocks the best that was measured on loopback.
inline constexpr std::size_t kWindow = 8;

/// No image is larger than this, so sizes from the wire cannot make sums wrap.
inline constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 56;

/// What travels at a time.
using Piece = ImageRange;

/// What both ends know before the first piece leaves.
struct Shape {
  std::uint64_t image_bytes = 0;
  std::uint64_t manifest_bytes = 0;
  std::uint64_t block_bytes = 0;
  bool with_manifest = true;  ///< False if the receiver's slot already holds the same manifest.
  std::uint64_t borrowed_bytes =
      0;                    ///< 0, or ImageInfo::borrowed_bytes: a replica travels, without.
  std::uint32_t loans = 0;  ///< As ImageInfo::loans.
  friend bool operator==(const Shape&, const Shape&) = default;
};

/// Throws InvalidArgument on sizes that contradict each other.
void check(const Shape& shape);

/// The pieces in the order of their offsets (in the whole image): the manifest (unless the receiver
/// has it), then one for each block of the data section, the last of them with the trailer; in a
/// replica those behind the borrowed bytes. Throws as check().
[[nodiscard]] std::vector<Piece> pieces_of(const Shape& shape);

/// One end's transfer. `on_piece(i, n)` is called when piece i of n (from 1) has left or arrived.
struct Link {
  ProcessGroup& group;
  int peer = 0;
  std::uint64_t tag = 0;
  std::chrono::milliseconds stall{
      30'000};  ///< PeerSilent naming the peer after so long without a piece.
  std::function<void(std::uint64_t, std::uint64_t)> on_piece;
};

}  // namespace meshstage::transfer
