#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/stage_job.hpp>

/// The work of the threads of Streams that send, one for each peer, and of the crew `ms-conn` that
/// helps where there are several connections.
/// Threads: ms-send. The loop calls the makers at the end, which only prepare and capture values.
namespace meshstage::replicate {

/// An image, a replica, or ranges of an image, on its way to another rank.
struct Outgoing {
  int to = -1;
  exchange::StreamStart start;  ///< Sent before the first piece, with the connections that it uses.
  /// The trainer works meanwhile, so the stream uses Connections::beside_trainer; else the trainer
  /// waits, and the stream uses all that there are.
  bool beside_trainer = false;
  /// Returns the memory to send from. Called when `wait_final` has returned for the first time.
  std::function<std::span<const std::byte>()> image;
  /// Blocks until the bytes up to that offset are final; null: all are. An exception before the
  /// first piece ends the stream before it began.
  std::function<void(std::uint64_t)> wait_final;
  /// The receiver's table, and the digests of this rank's blocks (transfer::Offered).
  std::vector<Digest> held;
  std::function<std::optional<Digest>(std::size_t block)> digest;
  std::vector<ImageRange> ranges;    ///< Content::kLent: ranges of `image`, one behind the other.
  std::shared_ptr<const void> keep;  ///< Dropped when the last piece has left.
  /// Over a bridge only the receiver reports a loss. It closes the bridge when it has every image,
  /// perhaps before this rank knows that.
  bool over_bridge = false;
};

/// Sends an image, and returns when it does not read the memory any more. A lost peer ends the
/// ticket's generation, and so does any exception that is no Error.
void send_stream(Engine& engine, const TaskScope::Ticket& ticket, const Outgoing& stream);

// The loop calls these makers, and the threads that send call the functions that they make.

/// The image of a step that is being copied: sent as far as it is copied. The stream ends before it
/// began if the step never gets a slot. Any other error of the copy fails the step, but not the
/// stream: the receiver takes every piece.
[[nodiscard]] Outgoing outgoing_step(const std::shared_ptr<StageJob>& job);
/// Bytes that stay as they are while `keep` lives.
[[nodiscard]] Outgoing outgoing_bytes(std::span<const std::byte> bytes,
                                      std::shared_ptr<const void> keep);
/// For Outgoing::wait_final of a file. The function reads what leaves next, so that a disk that
/// hangs shows in `reads`, and not as a wire on which nothing moves.
[[nodiscard]] std::function<void(std::uint64_t until)> reading_ahead(
    Reads& reads, std::string path, std::span<const std::byte> image);

}  // namespace meshstage::replicate
