#pragma once
#include <cstddef>
#include <functional>
#include <span>

#include <meshstage/core/transfer/pieces.hpp>

/// A transfer over several connections to a peer (ProcessGroup::connections). Each connection takes
/// the next piece as soon as it has room for one, so a slow connection holds no other one up, and
/// pieces arrive in any order.
///
/// The stream of one connection: notes of 64 bytes with the tag's kNoteBit set, and with the tag
/// itself the pieces that the notes name, in their order. A note is sixteen little-endian numbers
/// of 32 bits: the piece that follows (kNoPiece: none, kEnd: this connection is done), how many
/// pieces stay, and those pieces, which the receiver holds already. kDepth notes say kEnd, because
/// the receiver is so many ahead. Every piece is named once over all connections, which the
/// receiver checks. Of no pieces nothing travels.
namespace meshstage::transfer {

/// Of tags: no tag of a Link has it.
inline constexpr std::uint64_t kNoteBit = std::uint64_t{1} << 61U;
/// Pieces in flight over each connection, each way.
inline constexpr unsigned kDepth = 4;

/// The sender's side. Several threads call the functions at once, each for other pieces.
struct Outgoing {
  std::size_t pieces = 0;
  /// Blocks until the piece is final; whether it stays. Null: none does.
  std::function<bool(std::size_t piece)> stays;
  /// Blocks until the piece is final. `place`: free memory for such a piece may be told by it, for
  /// it is below striped_places(), and no piece in flight has the same.
  std::function<std::span<const std::byte>(std::size_t piece, std::size_t place)> source;
};

/// The receiver's side. Several threads call the functions at once, each for other pieces.
struct Incoming {
  std::size_t pieces = 0;
  std::function<std::span<std::byte>(std::size_t piece, std::size_t place)> target;
  std::function<void(std::size_t piece, std::size_t place)> came;  ///< Null: nothing to do.
  /// A piece was not sent. Null: the peer must send all.
  std::function<void(std::size_t piece)> stayed;
};

[[nodiscard]] inline bool is_striped(const Link& link) {
  return link.group.connections(link.peer) > 1;
}

/// Pieces in flight over all connections, and so the places for such pieces.
[[nodiscard]] inline std::size_t striped_places(const Link& link) {
  return std::size_t{link.group.connections(link.peer)} * kDepth;
}

/// Both block until all pieces have left, or come. They use as many threads as there are
/// connections, the caller's among them. Link::on_piece is called by one thread at a time, with
/// the number of pieces that have left or come. Whatever is thrown aborts the link's group first.
/// Throw what the functions throw, what Transfer::wait_while_moving throws, and PeerLost if the
/// peer's notes make no sense.
void send_striped(const Link& link, const Outgoing& outgoing);
void receive_striped(const Link& link, const Incoming& incoming);

}  // namespace meshstage::transfer
