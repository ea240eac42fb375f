#include <meshstage/core/replicate/streams.hpp>

#include <algorithm>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/transfer/image.hpp>
#include <meshstage/core/transfer/ranges.hpp>

namespace meshstage::replicate {

Streams::Streams(Engine& engine) : engine_(engine) {
  for (const int peer : engine.config->data_peers) {
    (void)worker(send_, "ms-send", peer);
    (void)worker(receive_, "ms-recv", peer);
  }
}

Worker& Streams::worker(Workers& workers, const char* name, int peer) {
  auto& found = workers[peer];
  if (!found) found = std::make_unique<Worker>(name, engine_.boundary());
  return *found;
}

transfer::Link Streams::link_to(ProcessGroup& group, int peer, ImageId id,
                                protocol::Point point) const {
  return {group, peer, 0, engine_.options.deadline,
          [this, peer, id, point](std::uint64_t piece, std::uint64_t pieces) {
            engine_.report.reach(point, id, peer, piece, pieces);
          }};
}

/// Ends the generation. A transfer may see a death before the links do, and a connection may end
/// without a death: in both cases no image can travel in this generation any more.
void Streams::lost(const TaskScope::Ticket& ticket, int peer, ErrorKind kind,
                   std::string why) const {
  engine_.to_loop(ticket, [this, peer, kind, text = std::move(why)] {
    engine_.lose_in_transfer(peer, kind, text);
  });
}

// --- the threads that send -----------------------------------------------------------------------

void Streams::send(Outgoing stream, std::function<void()> done) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return done();
  engine_.gate.sending_begins();
  ++active_;
  const int to = stream.to;
  Worker& thread = worker(send_, "ms-send", to);
  thread.post([this, to, what = std::make_shared<Outgoing>(std::move(stream)),
               end = std::move(done), ticket]() mutable {
    try {
      send_now(*what);
    } catch (const PeerLost& e) {
      if (!what->over_bridge) {
        lost(ticket, e.rank().value_or(to), e.kind(),
             std::string("was lost while an image travelled: ") + e.what());
      }
    } catch (const PeerSilent& e) {
      lost(ticket, to, e.kind(), std::string("took no piece of an image: ") + e.what());
    } catch (const Error& e) {
      // The generation is broken, which is reported elsewhere, or the step never got a slot.
      engine_.report.info("an image to rank " + std::to_string(to) + " was not sent: " + e.what());
    } catch (...) {  // the stream may have ended within a piece, so the generation ends
      engine_.loop.fail(std::current_exception());
    }
    what.reset();  // with its lease on the sent image
    engine_.to_loop(ticket, [this, tell = std::move(end)] {
      engine_.gate.sending_ends();
      ended(tell);
    });
  });
}

void Streams::send_now(const Outgoing& stream) const {
  const auto& start = stream.start;
  const auto wait_final = [&](std::uint64_t until) {
    if (stream.wait_final) stream.wait_final(until);
  };
  const auto shape = exchange::shape_of(start);
  wait_final(shape.manifest_bytes);  // then the image has a slot, and copying has begun
  engine_.say(stream.to, start);
  const auto group = engine_.group_to(stream.to);
  const auto link = link_to(*group, stream.to, start.id, protocol::Point::kChunkSent);
  if (start.content == exchange::Content::kLent) {
    transfer::send_ranges(link, stream.image(), stream.ranges, start.block_bytes);
  } else {
    const auto stayed = [this](std::uint64_t bytes) {
      engine_.gate.count([bytes](Stats& stats) {
        stats.replica_bytes_sent -= bytes;
        stats.replica_bytes_kept += bytes;
      });
    };
    transfer::send_image(link, stream.image(), shape, wait_final,
                         {stream.held, stream.digest, stayed});
  }
}

// --- the threads that receive --------------------------------------------------------------------

void Streams::receive(Arriving stream, Arrived arrived, Failed failed) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return;
  ++active_;
  const int from = stream.from;
  worker(receive_, "ms-recv", from)
      .post([this, from, what = std::move(stream), ok = std::move(arrived), bad = std::move(failed),
             ticket] {
        const auto fail = [&](ErrorKind kind, const std::string& why) {
          engine_.to_loop(ticket, [bad, kind, why] { bad(kind, why); });
        };
        try {
          const ImageInfo info = receive_now(what);
          engine_.to_loop(ticket, [ok, info] { ok(info); });
        } catch (const PeerLost& e) {
          lost(ticket, e.rank().value_or(from), e.kind(),
               std::string("was lost while an image travelled: ") + e.what());
        } catch (const PeerSilent& e) {
          lost(ticket, from, e.kind(), std::string("sent no piece of its image: ") + e.what());
        } catch (const Error& e) {
          fail(e.kind(), e.what());
        } catch (...) {  // pieces may be left on the connection, so no stream can follow this one
          engine_.loop.fail(std::current_exception());
        }
        engine_.to_loop(ticket, [this] { ended(); });
      });
}

ImageInfo Streams::receive_now(const Arriving& stream) const {
  const auto& start = stream.start;
  const auto group = engine_.group_to(stream.from);
  const auto link = link_to(*group, stream.from, start.id, protocol::Point::kChunkReceived);
  if (start.content == exchange::Content::kLent) {
    transfer::receive_ranges(link, stream.image, stream.ranges, start.block_bytes);
    return {};
  }
  if (!stream.prove) {
    transfer::receive_pieces(link, stream.image, exchange::shape_of(start));
    return {};
  }
  transfer::Holding nothing;
  transfer::Holding& holding = stream.holding ? *stream.holding : nothing;
  holding.masked = start.masked;
  return transfer::receive_image(link, stream.image, exchange::shape_of(start),
                                 stream.manifest_digest, stream.identity, holding);
}

void Streams::drain(int from, const exchange::StreamStart& start) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return;
  ++active_;
  worker(receive_, "ms-recv", from).post([this, from, start, ticket] {
    try {
      const auto group = engine_.group_to(from);
      transfer::drain_image(link_to(*group, from, start.id, protocol::Point::kChunkReceived),
                            exchange::shape_of(start), start.masked);
    } catch (const PeerLost& e) {
      lost(ticket, e.rank().value_or(from), e.kind(),
           std::string("was lost while an image travelled: ") + e.what());
    } catch (const Error& e) {
      engine_.report.info("an unwanted image of rank " + std::to_string(from) +
                          " ended: " + e.what());
    }
    engine_.to_loop(ticket, [this] { ended(); });
  });
}

// --- the loop's thread ---------------------------------------------------------------------------

void Streams::when_idle(std::function<void()> task) {
  if (active_ == 0) return task();
  idle_ = std::move(task);
}

void Streams::ended(const std::function<void()>& tell) {
  --active_;
  if (tell) tell();
  if (active_ > 0 || !idle_) return;
  std::exchange(idle_, nullptr)();
}

void Streams::leave() {
  active_ = 0;
  idle_ = nullptr;
  const auto& peers = engine_.config->data_peers;
  for (auto* const workers : {&send_, &receive_}) {
    std::erase_if(*workers, [&](const auto& entry) {
      return !std::binary_search(peers.begin(), peers.end(), entry.first);
    });
  }
}

}  // namespace meshstage::replicate
