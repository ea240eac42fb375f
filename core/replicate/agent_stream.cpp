// Images that come and go, and the slots they use.
#include <utility>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/replicate/agent_impl.hpp>

namespace meshstage {

bool Agent::Impl::in_use(SlotKey key) const {
  const auto it = uses_.find(key);
  return it != uses_.end() && it->second > 0;
}

void Agent::Impl::release(SlotKey key) {
  if (--uses_[key] > 0) return;
  uses_.erase(key);
  retry_waiting();
}

void Agent::Impl::when_free(std::function<bool()> attempt) {
  if (!attempt()) waiting_.push_back(std::move(attempt));
}

void Agent::Impl::retry_waiting() {
  for (auto& attempt : std::exchange(waiting_, {})) when_free(std::move(attempt));
}

// A transfer may see a death before the links do, and a connection may end without one: either way
// no image can travel in this generation any more.
void Agent::Impl::lost_in_transfer(int peer, const PeerLost& error) {
  post([this, peer = error.rank().value_or(peer), why = std::string(error.what())] {
    // Who has finished closes its groups, perhaps before this rank hears that all have; every step
    // is decided by then. A death is still told by the links.
    if (state_.wants_finish) return;
    lose(peer, ErrorKind::kPeerLost, "was lost while an image travelled: " + why);
  });
}

void Agent::Impl::send_on(int to, std::function<void()> transfer, std::function<void()> done) {
  {
    const std::lock_guard lock(mutex_);
    ++sending_;
  }
  send_.at(to)->post([this, to, transfer = std::move(transfer), done = std::move(done)]() mutable {
    try {
      transfer();
    } catch (const PeerSilent& e) {
      post([this, to, why = std::string(e.what())] {
        lose(to, ErrorKind::kPeerSilent, "took no piece of an image: " + why);
      });
    } catch (const PeerLost& e) {
      lost_in_transfer(to, e);
    } catch (const Error& e) {
      // The generation is broken (who noticed says so), or the step never got a slot.
      log(LogLine::Level::kInfo,
          "an image to rank " + std::to_string(to) + " was not sent: " + e.what());
    }
    transfer = nullptr;  // with the lease on what was sent
    // Not post(): the slot is to be released in whatever generation this ends.
    loop_->post([this, done = std::move(done)] {
      done();
      const std::lock_guard lock(mutex_);
      --sending_;
      changed_.notify_all();
    });
  });
}

void Agent::Impl::stream_out(int to, int owner, ImageId id, const transfer::Shape& shape,
                             std::function<std::span<const std::byte>()> image,
                             std::function<void(std::uint64_t)> wait_final,
                             std::function<void()> done) {
  send_on(
      to,
      [this, to, owner, id, shape, image = std::move(image), wait_final = std::move(wait_final)] {
        wait_final(shape.manifest_bytes);  // it has a slot, and copying has begun
        say(to, exchange::encode({generation_.number, owner, id, shape}));
        transfer::send_image(link_to(to, id, protocol::Point::kChunkSent), image(), shape,
                             wait_final);
      },
      std::move(done));
}

void Agent::Impl::receive_on(int from, int owner, ImageId id, std::function<void()> transfer) {
  receive_.at(from)->post([this, from, owner, id, transfer = std::move(transfer)] {
    try {
      transfer();
    } catch (const PeerSilent& e) {
      post([this, from, why = std::string(e.what())] {
        lose(from, ErrorKind::kPeerSilent, "sent no piece of its image: " + why);
      });
    } catch (const PeerLost& e) {
      lost_in_transfer(from, e);
    } catch (const Error& e) {
      post([this, owner, id, kind = e.kind(), why = std::string(e.what())] {
        not_arrived(owner, id, kind, why);
      });
    } catch (const std::bad_alloc&) {
      post([this, owner, id] {
        not_arrived(owner, id, ErrorKind::kOutOfMemory, "no memory for the digests of its blocks");
      });
    }
  });
}

void Agent::Impl::stream_in(int from, const exchange::StreamStart& start) {
  starts_[from].push_back(start);
  take_starts(from);
}

void Agent::Impl::ask_for(int from, int owner, ImageId id, const transfer::Shape& shape,
                          exchange::Content content) {
  constexpr std::size_t kRemembered = 256;  // far more than can be under way
  if (asked_.size() >= kRemembered) asked_.erase(asked_.begin());
  asked_[{from, owner, id, content}] = shape;
}

void Agent::Impl::take_starts(int from) {
  auto& starts = starts_[from];
  while (!starts.empty()) {
    const exchange::StreamStart start = starts.front();
    // Who serves a fetch may have heard of the choice before this rank did, or the slot may still
    // be in use: what this rank is going to ask for is not unwanted. Images of one peer come in
    // order, so those behind it wait too.
    const bool fetch = start.id.generation < generation_.number;
    const auto known = incoming_.find(start.owner);
    const bool asked = known != incoming_.end() && known->second.id == start.id;
    if (fetch && state_.mode == protocol::Mode::kRecovering && !asked &&
        !refused_fetches_.contains(start.owner)) {
      return;
    }
    starts.pop_front();
    begin_stream(from, start);
  }
}

void Agent::Impl::begin_stream(int from, const exchange::StreamStart& start) {
  const auto it = incoming_.find(start.owner);
  const auto asked = asked_.find({from, start.owner, start.id, start.content});
  if (asked == asked_.end() || asked->second != start.shape) {
    // No receive is posted for what may never come, nor for sizes that nobody agreed to.
    const std::string what =
        "the image of rank " + std::to_string(start.owner) + ", " + to_string(start.id) +
        (asked == asked_.end()
             ? ", which this rank did not ask for"
             : ", in other sizes (" + std::to_string(start.shape.image_bytes) +
                   " bytes) than agreed (" + std::to_string(asked->second.image_bytes) + ")");
    warn("a message was refused: stream start from rank " + std::to_string(from) + ": " + what);
    if (asked != asked_.end()) {
      asked_.erase(asked);
      not_arrived(start.owner, start.id, ErrorKind::kCorruptData,
                  "rank " + std::to_string(from) + " sends " + what);
    }
    return;
  }
  asked_.erase(asked);
  const bool here = it != incoming_.end() && it->second.id == start.id;
  const auto link = link_to(from, start.id, protocol::Point::kChunkReceived);
  if (here && start.content == exchange::Content::kCommon) {
    const Incoming& in = it->second;
    const auto image = in.lease.image();
    for (const auto& part : shared_parts(image, read_info(image))) {
      if (part.rank != from) continue;
      receive_on(from, start.owner, start.id,
                 [this, link, image, ranges = ranges_of(part),
                  block_bytes = start.shape.block_bytes, from, owner = start.owner, id = start.id] {
                   transfer::receive_ranges(link, image, ranges, block_bytes);
                   post([this, from, owner, id] { common_arrived(from, owner, id); });
                 });
    }
    return;
  }
  if (!here || it->second.from != from || it->second.streaming) {
    // Given up here while its first piece was already on the way.
    receive_.at(from)->post([this, link, shape = start.shape, from] {
      try {
        transfer::drain_image(link, shape);
      } catch (const PeerLost& e) {
        lost_in_transfer(from, e);
      } catch (const Error& e) {
        log(LogLine::Level::kInfo,
            "an unwanted image of rank " + std::to_string(from) + " ended: " + e.what());
      }
    });
    return;
  }
  Incoming& in = it->second;
  in.streaming = true;
  receive_on(from, start.owner, start.id,
             [this, link, shape = start.shape, owner = start.owner, id = start.id,
              in_parts = in.in_parts, image = in.lease.image(), manifest = in.sizes.manifest_digest,
              who = identity(in.owner, in.id, in.base)] {
               if (in_parts) {
                 transfer::receive_pieces(link, image, shape);
                 post([this, owner, id] { ask_for_common(owner, id); });
                 return;
               }
               const ImageInfo info = transfer::receive_image(link, image, shape, manifest, who);
               post([this, owner, id, info] { arrived(owner, id, info); });
             });
}

void Agent::Impl::arrived(int owner, ImageId id, const ImageInfo& info) {
  const auto it = incoming_.find(owner);
  if (it == incoming_.end() || it->second.id != id) return;
  if (aborted_.contains(id)) {
    // Its owner may never have come to announce a digest: waiting for one would keep the slot.
    not_arrived(owner, id, ErrorKind::kCancelled, "the step failed");
    return;
  }
  it->second.arrived = info;
  seal_if_proven(owner);
}

void Agent::Impl::seal_if_proven(int owner) {
  const auto it = incoming_.find(owner);
  Incoming& in = it->second;
  if (!in.arrived || !in.expected) return;
  if (in.arrived->image_digest != *in.expected) {
    not_arrived(owner, in.id, ErrorKind::kCorruptData, "its digest is not the one announced");
    return;
  }
  try {
    in.lease.seal(*in.arrived);
  } catch (const Error& e) {
    not_arrived(owner, in.id, e.kind(), e.what());
    return;
  }
  const Incoming done = std::move(in);
  incoming_.erase(it);
  if (done.fetch) {
    feed(protocol::Fetched{done.owner});
  } else {
    feed(protocol::ReplicaSealed{done.owner, done.id});
  }
  retry_waiting();
}

void Agent::Impl::not_arrived(int owner, ImageId id, ErrorKind kind, const std::string& why) {
  const auto it = incoming_.find(owner);
  if (it == incoming_.end() || it->second.id != id) return;
  const bool fetch = it->second.fetch;
  // A transfer that ends badly gives up all of this rank's group. What ended it reports why: as the
  // recovery's error a Cancelled would hide a death from every rank.
  if (fetch && kind == ErrorKind::kCancelled) return;
  incoming_.erase(it);
  if (fetch) {
    feed(protocol::FetchFailed{owner, kind, why});
  } else {
    warn("rank " + std::to_string(owner) + "'s replica of " + to_string(id) +
         " did not arrive whole: " + why);
    feed(protocol::ReplicaFailed{owner, id, why});
  }
  retry_waiting();
}

}  // namespace meshstage
