#include <meshstage/core/replicate/inbox.hpp>

#include <algorithm>
#include <memory>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {
namespace {

/// The error's kind (kIo for an exception that is no Error), and its text without the words for the
/// kind, because it is thrown again with them.
protocol::FetchFailed fetch_failed(int owner, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return {owner, e.kind(), e.message()};
  } catch (const std::bad_alloc& e) {
    return {owner, ErrorKind::kOutOfMemory, e.what()};
  } catch (...) {
    return {owner, ErrorKind::kIo, text_of(error)};
  }
}

transfer::Shape shape_of(const std::vector<ImageRange>& ranges, std::uint64_t block_bytes) {
  transfer::Shape shape;
  for (const auto& range : ranges) shape.image_bytes += range.bytes;
  shape.block_bytes = block_bytes;
  shape.with_manifest = false;
  return shape;
}

}  // namespace

Inbox::Inbox(Engine& engine, Slots& slots, Streams& streams, Verifier& verifier)
    : engine_(engine), slots_(slots), streams_(streams), verifier_(verifier) {}

Inbox::Incoming* Inbox::find(int owner, ImageId id) {
  const auto it = incoming_.find(owner);
  return it == incoming_.end() || it->second.id != id ? nullptr : &it->second;
}

std::map<int, Inbox::Incoming>::iterator Inbox::forget(std::map<int, Incoming>::iterator it) {
  slots_.give_back(std::move(it->second.lease));
  return incoming_.erase(it);
}

Streams::Failed Inbox::failing(int owner, ImageId id) {
  return [this, owner, id](ErrorKind kind, const std::string& why) {
    not_proven(owner, id, kind, why);
  };
}

// --- a ward's replica ----------------------------------------------------------------------------

void Inbox::accept(const protocol::AcceptReplica& action) {
  slots_.when_free([this, action]() -> bool {
    const auto fail = [&](const std::string& why) {
      engine_.feed(protocol::ReplicaFailed{action.ward, action.id, why});
      return true;
    };
    if (aborted_.contains(action.id)) return fail("the step failed");  // while it waited
    const auto old = incoming_.find(action.ward);
    if (old != incoming_.end() && (old->second.streaming || old->second.sealing)) return false;
    const SlotKey key{action.ward, action.slot};
    if (slots_.in_use(key)) {
      const auto stuck = slots_.stuck(key);
      return stuck ? fail(*stuck) : false;
    }
    if (old != incoming_.end()) forget(old);
    const auto held = std::make_shared<transfer::HeldBlocks>(slots_.take_held(key));
    slots_.begin_write({key, engine_.identity(action.ward, action.id, action.base),
                        action.sizes.image_bytes - action.sizes.borrowed_bytes},
                       [this, action, held](WriteLease& lease, const std::exception_ptr& error) {
                         if (!error && !aborted_.contains(action.id))
                           return begin(action, std::move(lease), std::move(*held));
                         const std::string why = error ? text_of(error) : "the step failed";
                         if (error) {
                           engine_.report.warn("cannot hold rank " + std::to_string(action.ward) +
                                               "'s replica of " + to_string(action.id) + ": " +
                                               why);
                         }
                         engine_.feed(protocol::ReplicaFailed{action.ward, action.id, why});
                       });
    return true;
  });
}

void Inbox::begin(const protocol::AcceptReplica& action, WriteLease lease,
                  transfer::HeldBlocks held) {
  Incoming in;
  in.slot = {action.ward, action.slot};
  in.from = in.owner = action.ward;
  in.id = action.id;
  in.base = action.base;
  in.sizes = action.sizes;
  in.lease = std::move(lease);
  const auto& before = in.lease.previous();
  in.with_manifest = !before || before->manifest_digest != action.sizes.manifest_digest ||
                     before->manifest_bytes != action.sizes.manifest_bytes;
  // Only what this process put there, in the same layout, and what the header still names.
  if (in.with_manifest || !before || before->identity.id != held.id ||
      held.manifest_digest != action.sizes.manifest_digest ||
      held.block_bytes != engine_.options.block_bytes ||
      held.blocks.size() > transfer::kMostHeldBlocks) {
    held = {};
  }
  in.holding = std::make_shared<transfer::Holding>();
  in.holding->held = std::move(held);
  if (const auto known = announced_.find(action.ward);
      known != announced_.end() && known->second.first == action.id) {
    in.expected = known->second.second;
  }
  asks_.add(in.from, in.owner, exchange::Content::kImage, in.id,
            engine_.shape_of(in.sizes, in.with_manifest, true));
  protocol::ReplicaReady ready{action.ward, action.id, in.with_manifest, in.holding->held.blocks};
  incoming_.insert_or_assign(action.ward, std::move(in));
  engine_.feed(std::move(ready));
}

void Inbox::expect(const protocol::ExpectDigest& action) {
  Incoming* in = find(action.ward, action.id);
  if (in == nullptr) {
    announced_[action.ward] = {action.id, action.image_digest};  // its slot is not ready yet
    return;
  }
  in->expected = action.image_digest;
  if (!in->not_whole.empty()) {
    return not_arrived(in->owner, in->id, ErrorKind::kCorruptData, std::string(in->not_whole));
  }
  seal_if_proven(*in);
}

void Inbox::abort(const protocol::AbortRound& action) {
  aborted_.insert(action.id);
  for (auto it = incoming_.begin(); it != incoming_.end();) {
    const Incoming& in = it->second;
    const bool on_its_way = in.streaming && !in.arrived && in.not_whole.empty();
    if (in.fetch || in.id != action.id || in.sealing || on_its_way) {
      ++it;  // its pieces are on their way: it answers when all are taken
      continue;
    }
    engine_.feed(protocol::ReplicaFailed{in.owner, in.id, "the step failed"});
    it = forget(it);
  }
}

void Inbox::complete(ImageId id) { aborted_.erase(aborted_.begin(), aborted_.upper_bound(id)); }

// --- an image that is fetched --------------------------------------------------------------------

void Inbox::fetch(const protocol::Fetch& action, std::optional<Verifier::Here> here) {
  const protocol::Claim& source = action.source;
  if (source.at != engine_.rank) {
    asks_.add(source.at, source.owner, exchange::Content::kImage, source.id,
              engine_.shape_of(source.sizes, true, sends_replica(source, engine_.rank)));
  }
  slots_.when_free([this, action, here]() -> bool {
    const protocol::Claim& from = action.source;
    const SlotKey key{from.owner, action.slot};
    if (slots_.in_use(key)) return false;
    const std::uint64_t bytes =
        from.sizes.image_bytes - (from.owner == engine_.rank ? 0 : from.sizes.borrowed_bytes);
    WantedImage wanted{key, engine_.identity(from.owner, from.id, from.base), bytes};
    if (action.move && here) wanted.stray = here->stray;
    wanted.spare = action.spare;
    slots_.begin_write(
        std::move(wanted), [this, from, here](WriteLease& lease, const std::exception_ptr& error) {
          if (error) {
            refused_.insert(from.owner);
            if (from.at != engine_.rank) take_starts(from.at);
            engine_.feed(fetch_failed(from.owner, error));
            return;
          }
          refused_.erase(from.owner);
          if (!lease.valid()) {
            engine_.feed(protocol::Fetched{from.owner});
            return slots_.retry();
          }
          Incoming in;
          in.from = from.at;
          in.owner = from.owner;
          in.id = from.id;
          in.base = from.base;
          in.sizes = from.sizes;
          in.fetch = true;
          in.in_parts = from.owner == engine_.rank && from.needs_lenders();
          for (const auto& loan : from.borrowed) in.lenders.push_back(loan.rank);
          in.expected = from.image_digest;
          in.lease = std::move(lease);
          const auto target = in.lease.image();
          incoming_.insert_or_assign(from.owner, std::move(in));
          if (from.at != engine_.rank) return take_starts(from.at);
          if (!here) {
            return not_arrived(from.owner, from.id, ErrorKind::kNotFound,
                               "what it is to be read from was not verified by this rank");
          }
          verifier_.load(
              *here, target, from.sizes,
              [this, owner = from.owner, id = from.id,
               in_parts = incoming_.at(from.owner).in_parts](const ImageInfo& info) {
                if (in_parts) return ask_lenders(owner, id);
                arrived(owner, id, info);
              },
              failing(from.owner, from.id));
        });
    return true;
  });
}

void Inbox::established() {
  for (auto& [peer, starts] : starts_) {
    take_starts(peer);  // no ask is left for them, so they are refused
  }
}

void Inbox::ask_lenders(int owner, ImageId id) {
  const Incoming* in = find(owner, id);
  if (in == nullptr) return;
  verifier_.missing(
      in->lease.image(), in->sizes, id,
      [this, owner, id](const std::vector<Verifier::Missing>& all) {
        Incoming* now = find(owner, id);
        if (now == nullptr) return;
        // Only the announced lenders have a ServeLent, so only they will answer.
        const bool as_announced = std::equal(
            all.begin(), all.end(), now->lenders.begin(), now->lenders.end(),
            [](const Verifier::Missing& part, int lender) { return part.lender == lender; });
        if (!as_announced || all.empty()) {
          return not_arrived(owner, id, ErrorKind::kCorruptData,
                             "it borrows from other ranks than was announced");
        }
        for (const auto& part : all) {
          now->missing[part.lender] = part.ranges;
          asks_.add(part.lender, owner, exchange::Content::kLent, id,
                    shape_of(part.ranges, engine_.options.block_bytes));
          engine_.say(part.lender, part.want);
        }
      },
      failing(owner, id));
}

void Inbox::lent_arrived(int from, int owner, ImageId id) {
  Incoming* in = find(owner, id);
  if (in == nullptr) return;
  in->missing.erase(from);
  if (!in->missing.empty()) return;
  verifier_.prove(
      in->from, in->lease.image(), in->sizes.manifest_digest,
      engine_.identity(owner, in->id, in->base),
      [this, owner, id](const ImageInfo& info) { arrived(owner, id, info); }, failing(owner, id));
}

// --- streams -------------------------------------------------------------------------------------

void Inbox::stream(int from, const exchange::StreamStart& start) {
  starts_[from].push_back(start);
  take_starts(from);
}

void Inbox::take_starts(int from) {
  auto& starts = starts_[from];
  while (!starts.empty()) {
    const exchange::StreamStart start = starts.front();
    // The rank that serves a fetch may have heard of the choice before this rank, or the slot may
    // still be in use. Then this rank will still ask for the image, so the stream start must wait.
    // Images of one peer come in order, so the starts behind it wait, too.
    const bool fetch = start.id.generation < engine_.generation.number;
    if (fetch && engine_.state.mode == protocol::Mode::kRecovering &&
        find(start.owner, start.id) == nullptr && !refused_.contains(start.owner)) {
      return;
    }
    starts.pop_front();
    begin_stream(from, start);
  }
}

void Inbox::begin_stream(int from, const exchange::StreamStart& start) {
  const auto asked = asks_.take(from, start.owner, start.content, start.id);
  if (!asked || *asked != exchange::shape_of(start)) {
    // Posts no receive for an image that may never come, nor for sizes that were not agreed.
    const std::string what =
        "the image of rank " + std::to_string(start.owner) + ", " + to_string(start.id) +
        (!asked ? ", which this rank did not ask for"
                : ", in other sizes (" + std::to_string(start.image_bytes) +
                      " bytes) than agreed (" + std::to_string(asked->image_bytes) + ")");
    engine_.report.warn("a message was refused: stream start from rank " + std::to_string(from) +
                        ": " + what);
    if (asked) {
      not_arrived(start.owner, start.id, ErrorKind::kCorruptData,
                  "rank " + std::to_string(from) + " sends " + what);
    }
    return;
  }
  Incoming* in = find(start.owner, start.id);
  if (in != nullptr && start.content == exchange::Content::kLent) {
    return receive_lent(*in, from, start);
  }
  // This rank gave up the image while its first piece was already on its way.
  if (in == nullptr || in->from != from || in->streaming) return streams_.drain(from, start);
  in->streaming = true;
  Arriving stream;
  stream.from = from;
  stream.start = start;
  stream.image = in->lease.image();
  stream.prove = !in->in_parts;
  stream.holding = in->holding;
  stream.manifest_digest = in->sizes.manifest_digest;
  stream.identity = engine_.identity(in->owner, in->id, in->base);
  streams_.receive(
      std::move(stream),
      [this, owner = in->owner, id = in->id, in_parts = in->in_parts](const ImageInfo& info) {
        if (in_parts) return ask_lenders(owner, id);
        arrived(owner, id, info);
      },
      failing(in->owner, in->id));
}

void Inbox::receive_lent(Incoming& in, int from, const exchange::StreamStart& start) {
  const auto missing = in.missing.find(from);
  if (missing == in.missing.end()) return;
  Arriving stream;
  stream.from = from;
  stream.start = start;
  stream.image = in.lease.image();
  stream.ranges = missing->second;
  streams_.receive(
      std::move(stream),
      [this, from, owner = in.owner, id = in.id](const ImageInfo&) {
        lent_arrived(from, owner, id);
      },
      failing(in.owner, in.id));
}

// --- the end of each -----------------------------------------------------------------------------

void Inbox::arrived(int owner, ImageId id, const ImageInfo& info) {
  Incoming* in = find(owner, id);
  if (in == nullptr) return;
  if (aborted_.contains(id)) {
    // The owner may never announce a digest for a failed step: waiting for it would keep the slot.
    return not_arrived(owner, id, ErrorKind::kCancelled, "the step failed");
  }
  in->arrived = info;
  seal_if_proven(*in);
}

void Inbox::seal_if_proven(Incoming& in) {
  if (!in.arrived || !in.expected || in.sealing) return;
  if (in.arrived->image_digest != *in.expected) {
    return not_arrived(in.owner, in.id, ErrorKind::kCorruptData,
                       "its digest is not the one announced");
  }
  auto ticket = engine_.scope.enter();
  if (!ticket) return;
  in.sealing = true;
  slots_.post([this, owner = in.owner, id = in.id, info = *in.arrived,
               lease = std::make_shared<WriteLease>(std::move(in.lease)), ticket] {
    const auto error = seal_image(*lease, info);
    engine_.to_loop(ticket, [this, owner, id, error] {
      if (error) {
        const auto failed = fetch_failed(owner, error);
        return not_arrived(owner, id, failed.kind, failed.why);
      }
      sealed(owner, id);
    });
  });
}

void Inbox::sealed(int owner, ImageId id) {
  Incoming* in = find(owner, id);
  if (in == nullptr) return;
  const bool fetch = in->fetch;
  if (in->holding && !in->holding->blocks.empty()) {
    slots_.remember_held(in->slot,
                         {id, in->sizes.manifest_digest, engine_.options.block_bytes,
                          in->holding->held.times_kept + 1, std::move(in->holding->blocks)});
  }
  incoming_.erase(owner);
  if (fetch) {
    engine_.feed(protocol::Fetched{owner});
  } else {
    engine_.feed(protocol::ReplicaSealed{owner, id});
  }
  slots_.retry();
}

// An owner whose copy failed sends what its slot held before, and votes no with the reason. What
// this rank found would hide that reason, so it waits until the owner calls its own image whole.
void Inbox::not_proven(int owner, ImageId id, ErrorKind kind, const std::string& why) {
  Incoming* in = find(owner, id);
  if (in == nullptr) return;
  if (in->fetch || in->expected || kind != ErrorKind::kCorruptData) {
    return not_arrived(owner, id, kind, why);
  }
  engine_.report.info("rank " + std::to_string(owner) + "'s replica of " + to_string(id) +
                      " is not whole: " + why);
  if (aborted_.contains(id)) {
    return not_arrived(owner, id, ErrorKind::kCancelled, "the step failed");
  }
  in->not_whole = why;
}

void Inbox::not_arrived(int owner, ImageId id, ErrorKind kind, const std::string& why) {
  const Incoming* in = find(owner, id);
  if (in == nullptr) return;
  const bool fetch = in->fetch;
  // A failed transfer aborts this rank's whole group, and its cause is reported by whoever aborted
  // it. As the recovery's error, Cancelled would hide that cause, a death, from every rank.
  if (fetch && kind == ErrorKind::kCancelled) return;
  forget(incoming_.find(owner));
  if (fetch) {
    engine_.feed(protocol::FetchFailed{owner, kind, why});
  } else {
    engine_.report.warn("rank " + std::to_string(owner) + "'s replica of " + to_string(id) +
                        " did not arrive whole: " + why);
    engine_.feed(protocol::ReplicaFailed{owner, id, why});
  }
  slots_.retry();
}

void Inbox::leave() {
  asks_.clear();
  incoming_.clear();
  announced_.clear();
  starts_.clear();
  refused_.clear();
  aborted_.clear();
}

}  // namespace meshstage::replicate
