#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/transfer/kept.hpp>

/// The work of the threads of Streams that receive, one for each peer.
/// Threads: ms-recv.
namespace meshstage::replicate {

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

using Arrived = std::function<void(const ImageInfo&)>;  ///< Without Arriving::prove: empty.
using NotArrived = std::function<void(ErrorKind, const std::string&)>;

/// Receives an image. Then runs `arrived` or `failed` on the loop, as part of the ticket's
/// generation; but a lost peer, or an exception that is no Error, ends the generation.
void receive_stream(Engine& engine, const TaskScope::Ticket& ticket, const Arriving& stream,
                    const Arrived& arrived, const NotArrived& failed);
/// Receives and drops the pieces of an image.
void drain_stream(Engine& engine, const TaskScope::Ticket& ticket, int from,
                  const exchange::StreamStart& start);

}  // namespace meshstage::replicate
