#pragma once
#include <cstddef>
#include <functional>
#include <span>

#include <meshstage/core/transfer/pieces.hpp>

/// How pieces travel to a peer, whatever they are: over one connection in order (moving.cpp), over
/// several connections each by the first one that has room (striped_impl.hpp).
namespace meshstage::transfer {

/// Where the sender gets its pieces. Over several connections, several threads call the functions
/// at once, each for other pieces.
struct PieceSource {
  std::size_t pieces = 0;
  /// Blocks until the piece is final, and returns whether it stays. Null: no piece stays, and the
  /// receiver knows that.
  std::function<bool(std::size_t piece)> stays;
  /// Blocks until the piece is final. `place` is below places() and differs for all pieces in
  /// flight, so it can choose the memory of a piece.
  std::function<std::span<const std::byte>(std::size_t piece, std::size_t place)> bytes;
};

/// Where the receiver puts the pieces. Threads: as PieceSource.
struct PieceTarget {
  std::size_t pieces = 0;
  std::function<std::span<std::byte>(std::size_t piece, std::size_t place)> memory;
  std::function<void(std::size_t piece, std::size_t place)> came;  ///< Null: nothing to do.
  /// Called for a piece that was not sent. Null: the peer sends every piece. Null here if and only
  /// if PieceSource::stays is null there.
  std::function<void(std::size_t piece)> stayed;
};

/// The connections that the transfer uses.
[[nodiscard]] inline unsigned connections_of(const Link& link) {
  return link.connections != 0 ? link.connections : link.group.connections(link.peer);
}
[[nodiscard]] inline bool is_striped(const Link& link) { return connections_of(link) > 1; }

/// The places for pieces in flight.
[[nodiscard]] std::size_t places(const Link& link);

/// Both block until all pieces have left, or have come. One thread at a time calls Link::on_piece,
/// with the number of pieces that have left or come. Throw what the functions throw, and what
/// Transfer::wait_while_moving throws.
void send(const Link& link, const PieceSource& source);
void receive(const Link& link, const PieceTarget& target);

}  // namespace meshstage::transfer
