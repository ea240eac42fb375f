#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/transfer/kept.hpp>

namespace meshstage::replicate {

/// An image, a replica, or ranges of an image, on its way to another rank.
struct Outgoing {
  int to = -1;
  exchange::StreamStart start;  ///< Sent before the first piece.
  /// Returns the memory to send from. Called when `wait_final` has returned for the first time.
  std::function<std::span<const std::byte>()> image;
  /// Blocks until the bytes up to that offset are final; null: all are. An exception before the
  /// first piece ends the stream before it began.
  std::function<void(std::uint64_t)> wait_final;
  /// The receiver's table, and the digests of what is sent (transfer::Offered).
  std::vector<Digest> held;
  std::function<std::optional<Digest>(std::size_t block)> digest;
  std::vector<ImageRange> ranges;    ///< Content::kLent: ranges of `image`, one behind the other.
  std::shared_ptr<const void> keep;  ///< Dropped when the last piece has left.
  /// The rank at the other end closes when all that was sent to it is there, perhaps before this
  /// rank knows that. So the receiver alone reports a loss.
  bool over_bridge = false;
};

/// An image, a replica, or ranges of an image, that another rank has begun to send.
struct Arriving {
  int from = -1;
  exchange::StreamStart start;
  std::span<std::byte> image;
  std::shared_ptr<transfer::Holding> holding;  ///< The slot's blocks that may stay; may be null.
  std::vector<ImageRange> ranges;              ///< Content::kLent: their places in `image`.
  bool prove = true;                           ///< False for a replica that lenders still complete.
  Digest manifest_digest{};
  ImageIdentity identity;
};

/// Moves images: for each data peer, and for each rank at the other end of a bridge, one thread
/// sends (`ms-send`) and one receives (`ms-recv`). It knows how images travel, but neither rounds
/// nor recoveries. The loss of a peer in a transfer ends the generation.
/// Threads: the loop's. `done` and `failed` run there, too.
class Streams {
 public:
  explicit Streams(Engine& engine);

  /// `done` runs when the stream does not read the memory any more, however the stream ended.
  void send(Outgoing stream, std::function<void()> done);

  using Arrived = std::function<void(const ImageInfo&)>;  ///< Without `prove`: empty.
  using Failed = std::function<void(ErrorKind, const std::string&)>;
  void receive(Arriving stream, Arrived arrived, Failed failed);
  /// Receives and drops the pieces of an image that this rank does not want any more.
  void drain(int from, const exchange::StreamStart& start);
  /// Runs `task` when no stream is left; at once if there is none.
  void when_idle(std::function<void()> task);
  /// Called when the generation was left, so no stream is left either.
  void leave();

 private:
  /// A stream is over: tells so, and then runs what waited for the last one.
  void ended(const std::function<void()>& tell = {});
  void send_now(const Outgoing& stream) const;
  [[nodiscard]] ImageInfo receive_now(const Arriving& stream) const;
  [[nodiscard]] transfer::Link link_to(ProcessGroup& group, int peer, ImageId id,
                                       protocol::Point point) const;
  void lost(const TaskScope::Ticket& ticket, int peer, ErrorKind kind, std::string why) const;
  using Workers = std::map<int, std::unique_ptr<Worker>>;
  Worker& worker(Workers& workers, const char* name, int peer);

  Engine& engine_;
  int active_ = 0;
  std::function<void()> idle_;
  Workers send_, receive_;
};

}  // namespace meshstage::replicate
