#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>

namespace meshstage::replicate {

/// An image, a replica, or ranges of an image, on its way to another rank.
struct Outgoing {
  int to = -1;
  exchange::StreamStart start;  ///< Sent before the first piece.
  /// The memory that is sent from; asked for once `ready` has returned for the first time.
  std::function<std::span<const std::byte>()> image;
  /// Blocks until the bytes up to that offset are final; null: all are. What it throws before the
  /// first piece ends the stream before it began.
  std::function<void(std::uint64_t)> wait_final;
  std::vector<ImageRange> ranges;    ///< Content::kLent: of the image, one behind the other.
  std::shared_ptr<const void> keep;  ///< Let go of when the last piece has left.
};

/// An image, a replica, or ranges of an image, that another rank has begun to send.
struct Arriving {
  int from = -1;
  exchange::StreamStart start;
  std::span<std::byte> image;
  std::vector<ImageRange> ranges;  ///< Content::kLent: where in `image` they belong.
  bool prove = true;  ///< False: pieces of a replica that others complete are not proven yet.
  Digest manifest_digest{};
  ImageIdentity identity;
};

/// Moves images: for each data peer one thread that sends (`ms-send`) and one that receives
/// (`ms-recv`). It knows how images travel, not what for. A peer that is lost on the way ends the
/// generation.
/// Threads: the loop's. `done` and `failed` run there, too.
class Streams {
 public:
  explicit Streams(Engine& engine);

  /// `done` runs when nothing is read from the memory any more, however the stream ended.
  void send(Outgoing stream, std::function<void()> done);

  using Arrived = std::function<void(const ImageInfo&)>;  ///< Without `prove`: empty.
  using Failed = std::function<void(ErrorKind, const std::string&)>;
  void receive(Arriving stream, Arrived arrived, Failed failed);
  /// Takes the pieces of an image that nobody wants any more.
  void drain(int from, const exchange::StreamStart& start);
  /// Runs `task` once no stream is left, which may be at once.
  void when_idle(std::function<void()> task);
  /// The generation was left: no stream is.
  void leave();

 private:
  void ended();
  void send_now(const Outgoing& stream) const;
  [[nodiscard]] ImageInfo receive_now(const Arriving& stream) const;
  [[nodiscard]] transfer::Link link_to(int peer, ImageId id, protocol::Point point) const;
  void lost(const TaskScope::Ticket& ticket, int peer, ErrorKind kind, std::string why) const;

  Engine& engine_;
  int active_ = 0;
  std::function<void()> idle_;
  std::map<int, std::unique_ptr<Worker>> send_, receive_;
};

}  // namespace meshstage::replicate
