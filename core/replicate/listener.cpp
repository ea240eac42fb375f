#include <meshstage/core/replicate/listener.hpp>

#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/protocol/codec.hpp>

namespace meshstage::replicate {

void Listener::listen(ControlLinks& links, bool bridge) {
  links.set_handlers(
      {.on_message =
           [this](int peer, std::span<const std::byte> message) {
             engine_.post_or_fail([&] {
               return [this, peer, bytes = std::vector(message.begin(), message.end())] {
                 hear(peer, bytes);
               };
             });
           },
       .on_lost =
           [this, bridge](int peer, LostReason reason, const std::string& detail) {
             if (bridge && reason == LostReason::kClosed) return;
             engine_.post_or_fail([&] {
               return [this, peer, reason, detail] { losses_.lost_link(peer, reason, detail); };
             });
           },
       .alive =
           [this] {
             return engine_.loop.answers_within(Deadline::length(engine_.options.deadline) / 2);
           }});
}

void Listener::connect(const protocol::Connect& action) {
  verifier_.connect(
      action.peers,
      [this] {
        if (const auto links = engine_.bridge.links()) listen(*links, true);
        engine_.feed(protocol::Connected{});
      },
      [this, peers = action.peers](ErrorKind, const std::string& why) {
        std::string ranks;
        for (const int peer : peers) ranks += " " + std::to_string(peer);
        losses_.lose(-1, ErrorKind::kPeerLost,
                     "rank " + std::to_string(engine_.rank) +
                         " cannot connect to what has its images, rank" + ranks + ": " + why);
      });
}

void Listener::hear(int from, std::span<const std::byte> received) {
  const auto message = protocol::without_digest(received);
  if (!message) {
    // The message's kind is unknown, so a rank would wait for it for ever. No rank is dead.
    losses_.lose(-1, ErrorKind::kPeerLost,
                 "a control message from rank " + std::to_string(from) + " to rank " +
                     std::to_string(engine_.rank) + " was damaged on its way");
    return;
  }
  const std::span<const std::byte> bytes = *message;
  try {
    protocol::Message decoded = protocol::decode(engine_.wire, from, bytes);
    check_generation(protocol::name_of(decoded.body), from, decoded.generation);
    if (const auto* moved = std::get_if<protocol::Moved>(&decoded.body)) {
      return collectives_.hear(from, *moved);
    }
    engine_.feed(protocol::Received{from, std::move(decoded)});
  } catch (const CorruptData& e) {
    engine_.report.warn(std::string("a message was refused: ") + e.what());
  }
}

/// Links belong to one generation, so a message of another generation is an error.
void Listener::check_generation(const char* what, int from, std::uint64_t generation) const {
  if (generation == engine_.present) return;
  throw make_error<CorruptData>(std::string(what) + " from rank " + std::to_string(from) +
                                    ": generation " + std::to_string(generation) + ", this is " +
                                    std::to_string(engine_.present),
                                from);
}

}  // namespace meshstage::replicate
