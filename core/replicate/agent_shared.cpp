// What this rank has in common with others: its replicas leave out what ranks in other failure
// domains have in their own images of the same step, and an owner that was lost gets it from there.
// core/protocol/PROTOCOL.md, "What other ranks have too".
#include <algorithm>
#include <memory>
#include <utility>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/replicate/agent_impl.hpp>

namespace meshstage {
namespace {

transfer::Shape shape_of(const std::vector<ImageRange>& ranges, std::uint64_t block_bytes) {
  transfer::Shape shape;
  for (const auto& range : ranges) shape.image_bytes += range.bytes;
  shape.block_bytes = block_bytes;
  shape.with_manifest = false;
  return shape;
}

}  // namespace

// --- the trainer's thread ------------------------------------------------------------------------

PlanOptions Agent::Impl::plan_options(const Value& state, const std::set<int>& apart) const {
  PlanOptions plan{.block_bytes = options_.block_bytes};
  if (!options_.shared.paths) return plan;
  const int me = options_.rank;
  const auto paths = [&](int owner, int at) {
    return exchange::names_for_a_want(options_.shared.paths(state, owner, at));
  };
  for (const int other : config_->completers[static_cast<std::size_t>(me)]) {
    if (!apart.contains(other)) plan.shared.push_back({other, paths(me, other)});
  }
  std::map<std::string_view, int> taken;
  for (const auto& part : plan.shared) {
    for (const auto& name : part.names) {
      const auto [it, first] = taken.emplace(name, part.rank);
      if (first) continue;
      throw InvalidArgument("the tensor \"" + name + "\" is left out on account of rank " +
                            std::to_string(it->second) + " and of rank " +
                            std::to_string(part.rank) + ": SharedTensors::paths names it for one");
    }
  }
  for (const int owner : config_->relying) {
    plan.completes.push_back({owner, paths(owner, me)});
  }
  return plan;
}

// --- the copying thread --------------------------------------------------------------------------

protocol::OwnSealed Agent::Impl::sealed_event(const StageJob& job, const ImageInfo& info) const {
  protocol::OwnSealed event{job.id, info.image_digest, {}, {}};
  if (info.shares == 0) return event;
  const auto shares = read_shares(job.image);
  const auto find = [](const std::vector<ImageShare>& list, int rank) {
    const auto it = std::find_if(list.begin(), list.end(),
                                 [&](const ImageShare& share) { return share.rank == rank; });
    return it == list.end() ? Digest{} : it->digest;
  };
  const auto& layout = job.plan->layout();
  for (const int rank : config_->completers[static_cast<std::size_t>(options_.rank)]) {
    protocol::Common common{job.id, 0, find(shares.left_out, rank)};
    for (const auto& part : layout.shared) {
      if (part.rank != rank) continue;
      for (const auto i : part.segments) common.bytes += layout.segments[i].bytes;
    }
    event.left_out.push_back(common);
  }
  for (const int rank : config_->relying) event.common.push_back(find(shares.completes, rank));
  return event;
}

// --- the agent's thread --------------------------------------------------------------------------

void Agent::Impl::note_sent(const transfer::Shape& shape) {
  const std::uint64_t manifest = shape.with_manifest ? 0 : shape.manifest_bytes;
  const std::lock_guard lock(mutex_);
  stats_.replica_bytes_sent += shape.image_bytes - shape.shared_bytes - manifest;
  stats_.replica_bytes_spared += shape.shared_bytes;
}

void Agent::Impl::perform(const protocol::StopSharing& action) {
  warn("rank " + std::to_string(action.with) +
       " has other bytes than this rank in tensors that are said to be the same on both, at " +
       to_string(action.id) + "; replicas leave them in from now on");
  const std::lock_guard lock(mutex_);
  apart_.insert(action.with);
}

// The rank whose image is fetched.

void Agent::Impl::ask_for_common(int owner, ImageId id) {
  const auto it = incoming_.find(owner);
  if (it == incoming_.end() || it->second.id != id) return;
  Incoming& in = it->second;
  try {
    const auto image = in.lease.image();
    const ImageInfo info = read_info(image);
    if (digest128(image.first(info.manifest_bytes)) != in.sizes.manifest_digest) {
      throw CorruptData("its manifest is not the one that was announced");
    }
    const auto parts = shared_parts(image, info);
    for (const auto& part : parts) in.missing.insert(part.rank);
    // Only those have been told to answer.
    if (!std::equal(in.missing.begin(), in.missing.end(), in.completers.begin(),
                    in.completers.end()) ||
        parts.empty()) {
      throw CorruptData("it leaves out what other ranks have than was announced");
    }
    for (const auto& part : parts) {
      exchange::Want want{generation_.number, id, {}};
      for (const auto& piece : part.pieces) want.storages.push_back({piece.name, piece.bytes});
      ask_for(part.rank, owner, id, meshstage::shape_of(ranges_of(part), options_.block_bytes),
              exchange::Content::kCommon);
      say(part.rank, exchange::encode(want));
    }
  } catch (const Error& e) {
    not_arrived(owner, id, e.kind(), e.what());
  }
}

void Agent::Impl::common_arrived(int from, int owner, ImageId id) {
  const auto it = incoming_.find(owner);
  if (it == incoming_.end() || it->second.id != id) return;
  Incoming& in = it->second;
  in.missing.erase(from);
  if (!in.missing.empty()) return;
  verify_->post([this, owner, id, from = in.from, image = in.lease.image(),
                 manifest = in.sizes.manifest_digest, who = identity(owner, in.id, in.base)] {
    try {
      const ImageInfo info = read_info(image);
      clear_shared_padding(shared_parts(image, info), info, image);
      const ImageInfo proven = transfer::prove_image(from, image, manifest, who);
      post([this, owner, id, proven] { arrived(owner, id, proven); });
    } catch (const Error& e) {
      post([this, owner, id, kind = e.kind(), why = std::string(e.what())] {
        not_arrived(owner, id, kind, why);
      });
    }
  });
}

// The rank that completes it.

void Agent::Impl::perform(const protocol::ServeCommon& action) {
  completions_[action.to] = action;
  serve_common(action.to);
}

void Agent::Impl::hear_want(int from, std::span<const std::byte> bytes) {
  auto want = exchange::decode_want(bytes, from);
  check_generation("want", from, want.generation);
  const auto& relying = config_->relying;
  if (!std::binary_search(relying.begin(), relying.end(), from) ||
      state_.mode != protocol::Mode::kRecovering) {
    throw make_error<CorruptData>(
        "want from rank " + std::to_string(from) + ", which this rank is not to complete", from);
  }
  wants_[from] = std::move(want);
  serve_common(from);
}

void Agent::Impl::serve_common(int to) {
  const auto told = completions_.find(to);
  const auto asked = wants_.find(to);
  if (told == completions_.end() || asked == wants_.end()) return;
  const protocol::ServeCommon action = told->second;
  const exchange::Want want = std::move(asked->second);
  completions_.erase(told);
  wants_.erase(asked);
  try {
    if (want.id != action.id) {
      throw make_error<CorruptData>("rank " + std::to_string(to) + " wants " + to_string(want.id) +
                                    " completed, not " + to_string(action.id));
    }
    const auto lease = std::make_shared<ReadLease>(vault_.read({options_.rank, action.slot}));
    std::vector<std::string> names;
    for (const auto& storage : want.storages) names.push_back(storage.name);
    const auto found = find_ranges(lease->image(), names);
    std::vector<ImageRange> ranges;
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (!found[i] || found[i]->bytes != want.storages[i].bytes) {
        throw make_error<CorruptData>("rank " + std::to_string(options_.rank) + " has no " +
                                      names[i] + " of " + std::to_string(want.storages[i].bytes) +
                                      " bytes in its image of " + to_string(want.id) +
                                      ", which rank " + std::to_string(to) + " wants");
      }
      ranges.push_back(*found[i]);
    }
    const auto shape = meshstage::shape_of(ranges, options_.block_bytes);
    send_on(
        to,
        [this, to, id = want.id, shape, lease, ranges] {
          say(to,
              exchange::encode({generation_.number, to, id, shape, exchange::Content::kCommon}));
          transfer::send_ranges(link_to(to, id, protocol::Point::kChunkSent), lease->image(),
                                ranges, shape.block_bytes);
        },
        [] {});
  } catch (const Error& e) {
    post_event(protocol::FetchFailed{to, e.kind(), e.what()});
  }
}

}  // namespace meshstage
