#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "transition_impl.hpp"

/// Rule 5b for a step of another number of ranks. A job goes on from such a step by its files, in
/// one directory of all ranks or on each host's own disk, and by images that its ranks keep in
/// memory where nobody writes (Place::kKept). The ranks that share a directory have proven a part
/// of its files each. If a newer step lies in other memory, its ranks make files of the images
/// first: Publish comes down, each rank writes, Published climbs, the root looks at its directory
/// and chooses. First the owners' own images are written. If there is no file of every rank's image
/// then, all do the same again with the replicas, which also serve where an own image is lost or
/// rots.
namespace meshstage::protocol {

using Phase = Recovery::Phase;

namespace {

/// The newest step of another number of ranks of which every rank's image is claimed.
OldStep newest_of_others(const Turn& turn) {
  std::map<int, std::vector<Claim>> by_world;
  for (const Claim& claim : turn.s.recovery.others) by_world[claim.world_size].push_back(claim);
  OldStep newest;
  for (auto& [world, claims] : by_world) {
    const ImageId id = choose(complete(turn, std::move(claims)), world);
    if (id > newest.id) newest = {id, world};
  }
  return newest;
}

/// The bytes of the files that the disk does not have yet: one image of each rank.
std::uint64_t missing_bytes(const Turn& turn, const OldStep& step) {
  std::map<int, std::uint64_t> bytes;
  for (const Claim& claim : turn.s.recovery.others) {
    if (claim.id != step.id || claim.world_size != step.world_size) continue;
    const auto it = bytes.emplace(claim.owner, claim.sizes.image_bytes).first;
    if (is_file(claim.place)) it->second = 0;
  }
  std::uint64_t all = 0;
  for (const auto& [owner, each] : bytes) all += each;
  return all;
}

/// Tells the parent once this rank and all ranks below it have written; the root looks at the disk.
void tally_published(Turn& turn) {
  Recovery& recovery = turn.s.recovery;
  if (!recovery.mine || recovery.below != turn.everyone_below()) return;
  if (turn.root()) {
    if (is_cut_anew(turn)) return establish_new_cut(turn);
    enter(recovery, Phase::kLook);
    turn.act(FindOld{});
  } else {
    turn.send(turn.config().parent, Published{std::exchange(recovery.unpublished, {}),
                                              std::exchange(recovery.written, {})});
    enter(recovery, is_cut_anew(turn) ? Phase::kWaiting : Phase::kChoice);
  }
}

void add_written(Recovery& recovery, const std::vector<int>& ranks) {
  recovery.written.insert(recovery.written.end(), ranks.begin(), ranks.end());
}

}  // namespace

void publish(Turn& turn, const Publish& message) {
  Recovery& recovery = turn.s.recovery;
  if (recovery.publishing != message.step) recovery.written.clear();
  recovery.publishing = message.step;
  if (message.mismatch) recovery.mismatch = message.mismatch;
  turn.send_down(message);
  enter(turn.s.recovery, Phase::kPublish);
  if (message.mismatch && !turn.rule().publish_cut) return on(turn, OldPublished{});
  turn.act(PublishOld{message.step, message.replicas});
}

OldStep newest_old(const Turn& turn, ImageId covered) {
  const Recovery& recovery = turn.s.recovery;
  if (!turn.rule().prove_old && !recovery.named.empty()) return recovery.named.back();
  struct Owners {
    std::set<int> in_files, in_files_or_kept;
  };
  std::map<std::pair<ImageId, int>, Owners> proven;  // by step and number of ranks: whose
  const auto add_file = [&](const OldStep& of, int owner) {
    Owners& owners = proven[{of.id, of.world_size}];
    owners.in_files.insert(owner);
    owners.in_files_or_kept.insert(owner);
  };
  for (const Claim& claim : recovery.others) {
    if (is_file(claim.place)) add_file({claim.id, claim.world_size}, claim.owner);
  }
  for (const int owner : recovery.written) add_file(recovery.publishing, owner);
  for (const Claim& claim : complete(turn, recovery.others)) {
    // A replica that borrows is not read from where it lies: it becomes a file first.
    if (claim.place != Place::kKept || claim.needs_lenders() || !turn.rule().count_kept) continue;
    proven[{claim.id, claim.world_size}].in_files_or_kept.insert(claim.owner);
  }
  OldStep newest = recovery.proven;
  for (const auto& [of, owners] : proven) {
    const OldStep step{of.first, of.second};
    if (step.id <= newest.id) continue;
    const auto& named = recovery.named;
    const bool counts =
        turn.rule().old_anywhere || std::find(named.begin(), named.end(), step) != named.end();
    const auto all = static_cast<std::size_t>(step.world_size);
    const bool not_passed = !covered.exists() || covered.step < step.id.step;
    const bool whole = owners.in_files.size() == all
                           ? counts
                           : owners.in_files_or_kept.size() == all && not_passed;
    if (whole) newest = step;
  }
  return newest;
}

bool look_first(Turn& turn, ImageId taken) {
  Recovery& recovery = turn.s.recovery;
  if (!turn.rule().look_old || recovery.looked || recovery.named.empty() ||
      recovery.named.back().id <= taken || unknown(turn, recovery.named.back().id)) {
    return false;
  }
  recovery.looked = true;
  enter(recovery, Phase::kLook);
  turn.act(FindOld{true});
  return true;
}

bool publish_first(Turn& turn, ImageId taken, ImageId covered) {
  Recovery& recovery = turn.s.recovery;
  const OldStep step = newest_of_others(turn);
  if (step.id <= taken) {
    recovery.unpublished = "not every rank's image of it is in reach";
    return false;
  }
  if (covered.exists() && covered.step >= step.id.step) {
    recovery.unpublished = "the present number of ranks has a step that is not older";
    return false;
  }
  if (!turn.rule().publish_old || unknown(turn, step.id)) return false;
  if (recovery.published == 2) {
    if (recovery.unpublished.empty()) {
      recovery.unpublished = "not every rank's image of it became a file";
    }
    return false;
  }
  const std::uint64_t bytes = missing_bytes(turn, step);
  if (recovery.published == 0 && bytes > recovery.room) {
    recovery.unpublished = "its images would become files of " + std::to_string(bytes) +
                           " bytes, and rank 0's directory has room for " +
                           std::to_string(recovery.room);
    return false;
  }
  recovery.unpublished.clear();
  publish(turn, {step, recovery.published++ > 0});
  return true;
}

void on(Turn& turn, const OldPublished& event) {
  Recovery& recovery = turn.s.recovery;
  if (!recovering(turn, Phase::kPublish) || recovery.mine) {
    return turn.stale("nobody asked for files of old images");
  }
  recovery.mine = true;
  add_text(recovery.unpublished, event.failed);
  add_written(recovery, event.written);
  tally_published(turn);
}

void on(Turn& turn, const OldFound& event) {
  if (!recovering(turn, Phase::kLook)) return turn.stale("nobody asked for an old step");
  turn.s.recovery.named = event.named;
  if (event.proven.id > turn.s.recovery.proven.id) turn.s.recovery.proven = event.proven;
  choose_at_root(turn);
}

void on(Turn& turn, int from, const Publish& message) {
  const bool old = recovering(turn, Phase::kChoice) && !message.mismatch &&
                   message.step.world_size != turn.config().world_size;
  if (from != turn.config().parent || !turn.config().any_world ||
      !(old || expects_new_cut(turn, message))) {
    return turn.malformed("publish out of turn");
  }
  publish(turn, message);
}

void on(Turn& turn, int from, const Published& message) {
  const int child = child_index(turn, from);
  Recovery& recovery = turn.s.recovery;
  if (child < 0 || !recovering(turn, Phase::kPublish) || (recovery.below >> child & 1U) != 0) {
    return turn.malformed("published out of turn");
  }
  recovery.below = static_cast<std::uint8_t>(recovery.below | 1U << child);
  add_text(recovery.unpublished, message.failed);
  add_written(recovery, message.written);
  tally_published(turn);
}

}  // namespace meshstage::protocol
