#pragma once
#include <cstddef>
#include <cstdint>

#include <meshstage/core/transfer/moving_impl.hpp>

/// A transfer over several connections to a peer (Link::connections). Each connection takes
/// the next piece as soon as it has room for one, so a slow connection delays no other, and pieces
/// arrive in any order.
///
/// The stream of one connection has notes of 64 bytes, whose tag has kNoteBit set, and the pieces
/// that the notes name, in the notes' order and with the tag itself. A note is sixteen
/// little-endian numbers of 32 bits: the piece that follows (kNoPiece: none, kEnd: this connection
/// is done), how many pieces stay, and those pieces, which the receiver holds already. The last
/// kDepth notes are kEnd, because the receiver waits for so many notes at once. The receiver checks
/// that the notes of all connections name every piece once. If there are no pieces, nothing is
/// sent.
namespace meshstage::transfer {

/// A bit of the tags of notes; no Link::tag has it.
inline constexpr std::uint64_t kNoteBit = std::uint64_t{1} << 61U;
/// Pieces in flight over each connection, each way.
inline constexpr unsigned kDepth = 4;

/// Pieces in flight over all connections, and so the places for such pieces.
[[nodiscard]] inline std::size_t striped_places(const Link& link) {
  return std::size_t{connections_of(link)} * kDepth;
}

/// Both block until all pieces have left, or have come. They use as many threads as there are
/// connections, the caller's among them. One thread at a time calls Link::on_piece, with the number
/// of pieces that have left or come. Any error first aborts the link's group. Throw what the
/// functions throw, what Transfer::wait_while_moving throws, and PeerLost if the peer's notes make
/// no sense.
void send_striped(const Link& link, const PieceSource& source);
void receive_striped(const Link& link, const PieceTarget& target);

}  // namespace meshstage::transfer
