// What the mesh already replicates need not travel: a holder that has a ward's tensor itself says
// so before it accepts the ward's image, and fills it in from its own image of the same step. The
// image is then proven by the owner's digests like any other, so nobody's word is taken for it.
#include <algorithm>
#include <utility>

#include <meshstage/core/image/safetensors.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/replicate/agent_impl.hpp>

namespace meshstage {
namespace {

/// A smaller storage costs more as a range of its own than it spares.
constexpr std::uint64_t kLeastBytes = 4096;

/// `ranges` as pieces of the ward's image, neighbours joined.
std::vector<exchange::Piece> pieces_from(const std::vector<TwinRange>& ranges) {
  std::vector<exchange::Piece> pieces;
  for (const auto& range : ranges) {
    if (!pieces.empty() && pieces.back().offset + pieces.back().bytes == range.offset) {
      pieces.back().bytes += range.bytes;
    } else if (pieces.size() < exchange::kMostPresent) {
      pieces.push_back({range.offset, range.bytes});
    }
  }
  return pieces;
}

}  // namespace

// --- the trainer's thread ------------------------------------------------------------------------

void Agent::Impl::find_twins(const Value& state) {
  if (!options_.twins) return;
  auto twins = std::make_shared<TwinNames>();
  for (const int ward : config_->wards) {
    auto names = options_.twins(state, ward);
    std::sort(names.begin(), names.end());
    if (!names.empty()) twins->emplace(ward, std::move(names));
  }
  twins_ = std::move(twins);
}

// --- the agent's thread: the holder --------------------------------------------------------------

std::vector<TwinRange> Agent::Impl::twins_in(int ward, std::span<const std::byte> image,
                                             const Digest& manifest, const StageJob& job) {
  if (!job.twins || no_twins_.contains(ward)) return {};
  const auto names = job.twins->find(ward);
  if (names == job.twins->end()) return {};
  KnownTwins& known = known_twins_[ward];
  if (known.plan == job.plan && known.manifest == manifest) return known.ranges;
  known = {manifest, job.plan, {}};
  const auto index = SafetensorsIndex::parse(image);
  for (const auto& segment : job.plan->layout().segments) {
    if (segment.bytes < kLeastBytes) continue;
    if (!std::binary_search(names->second.begin(), names->second.end(), segment.name)) continue;
    const auto* entry = index.find(segment.name);
    if (entry == nullptr || entry->end - entry->begin != segment.bytes) continue;
    known.ranges.push_back({index.data_begin() + entry->begin, segment.offset, segment.bytes});
  }
  std::sort(known.ranges.begin(), known.ranges.end(),
            [](const TwinRange& a, const TwinRange& b) { return a.offset < b.offset; });
  return known.ranges;
}

std::vector<exchange::Piece> Agent::Impl::tell_present(const Incoming& in) {
  // Where in the ward's image they lie is known only from a manifest that this slot has already.
  if (in.with_manifest || !job_) return {};
  std::vector<exchange::Piece> ranges;
  try {
    ranges = pieces_from(twins_in(in.owner, in.lease.image(), in.sizes.manifest_digest, *job_));
  } catch (const CorruptData& e) {
    warn("rank " + std::to_string(in.owner) + "'s image travels whole, the manifest of the one " +
         "before cannot be read: " + e.what());
  }
  if (ranges.empty() || !exchange::fits(ranges, shape_of(in.sizes, false))) return {};
  say(in.owner, exchange::encode(exchange::Present{generation_.number, in.id, ranges}));
  return ranges;
}

void Agent::Impl::fill_in(int ward, ImageId id) {
  const auto it = incoming_.find(ward);
  if (it == incoming_.end() || it->second.id != id) return;
  it->second.awaits_own = true;
  if (aborted_.contains(id)) {  // while its pieces were on their way
    not_arrived(ward, id, ErrorKind::kCancelled, "the step failed");
    return;
  }
  when_free([this, ward, id] { return try_fill_in(ward, id); });
}

bool Agent::Impl::try_fill_in(int ward, ImageId id) {
  const auto it = incoming_.find(ward);
  if (it == incoming_.end() || it->second.id != id || !it->second.awaits_own) return true;
  if (!job_ || job_->id < id) return false;  // the trainer has not come to this step
  if (job_->id == id && !job_->written) return false;
  Incoming& in = it->second;
  in.awaits_own = false;  // from here its memory is written
  const auto give_up = [&](const std::string& why) {
    post([this, ward, id, why] { not_arrived(ward, id, ErrorKind::kInvalidState, why); });
    return true;
  };
  const SlotKey own{options_.rank, job_->slot};
  const SlotInfo info = vault_.slot(own);
  if (job_->id != id || info.state != SlotState::kSealed || info.image.identity.id != id) {
    return give_up("this rank has no image of its own of " + to_string(id) + " to fill it in from");
  }
  std::vector<TwinRange> ranges;
  try {
    ranges = twins_in(ward, in.lease.image(), in.sizes.manifest_digest, *job_);
  } catch (const CorruptData& e) {
    return give_up(e.what());
  }
  if (pieces_from(ranges) != in.present) {
    return give_up("the structure of this rank's state changed meanwhile");
  }
  std::shared_ptr<ReadLease> lease;
  try {
    lease = std::make_shared<ReadLease>(vault_.read(own));
  } catch (const Error& e) {
    return give_up(e.what());
  }
  hold(own);
  receive_.at(in.from)->post([this, ward, id, own, lease, ranges = std::move(ranges),
                              from = in.from, image = in.lease.image(),
                              manifest = in.sizes.manifest_digest,
                              who = identity(in.owner, in.id, in.base)] {
    for (const auto& range : ranges) {
      fast_copy(image.subspan(range.offset, range.bytes),
                lease->image().subspan(range.own_offset, range.bytes));
    }
    try {
      const ImageInfo proven = exchange::prove_image(from, image, manifest, who);
      post([this, ward, id, proven] { arrived(ward, id, proven); });
    } catch (const CorruptData& e) {
      post([this, ward, id, why = std::string(e.what())] {
        no_twins_.insert(ward);
        warn("rank " + std::to_string(ward) +
             " has other bytes than this rank in a tensor said to be the same on both (its images "
             "travel whole from now on): " +
             why);
        not_arrived(ward, id, ErrorKind::kCorruptData, why);
      });
    }
    // Not post(): the slot is to be released in whatever generation this ends.
    loop_->post([this, own, lease] {
      lease->release();
      release(own);
    });
  });
  return true;
}

// --- the agent's thread: the owner ---------------------------------------------------------------

void Agent::Impl::hear_present(int from, std::span<const std::byte> bytes) {
  auto present = exchange::decode_present(bytes, from);
  check_generation("ranges present", from, present.generation);
  const auto& holders = config_->holders[static_cast<std::size_t>(options_.rank)];
  if (std::find(holders.begin(), holders.end(), from) == holders.end()) {
    throw make_error<CorruptData>(
        "ranges present at rank " + std::to_string(from) + ", which holds no image of this rank",
        from);
  }
  present_[from] = std::move(present);
}

std::vector<exchange::Piece> Agent::Impl::present_at(int holder, ImageId id,
                                                     const exchange::Shape& shape) {
  const auto it = present_.find(holder);
  if (it == present_.end() || it->second.id != id) return {};
  auto ranges = std::move(it->second.ranges);
  present_.erase(it);
  if (exchange::fits(ranges, shape)) return ranges;
  warn("a message was refused: ranges present at rank " + std::to_string(holder) +
       " do not fit this rank's image of " + to_string(id));
  return {};
}

void Agent::Impl::note_sent(const exchange::Shape& shape) {
  std::uint64_t spared = shape.with_manifest ? 0 : shape.manifest_bytes;
  for (const auto& range : shape.present) spared += range.bytes;
  const std::lock_guard lock(mutex_);
  stats_.replica_bytes_sent += shape.image_bytes - spared;
  stats_.replica_bytes_spared += spared - (shape.with_manifest ? 0 : shape.manifest_bytes);
}

}  // namespace meshstage
