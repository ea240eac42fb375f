#include <algorithm>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "transition_impl.hpp"

/// The root's part of rule 5: what the claims of all ranks amount to. Either a step from which all
/// of them go on, and who sends what to whom for it, or the error that tells a person why there is
/// none.
namespace meshstage::protocol {

using Phase = Recovery::Phase;

bool keeps(const Turn& turn, int at, int owner) {
  const Config& config = turn.config();
  return config.holds(at, owner) || (at == owner && owner >= 0 && owner < config.world_size);
}

int stranger(const Turn& turn, const Claim& claim) {
  if (!claim.needs_lenders() || claim.owner < 0 || claim.owner >= turn.config().world_size)
    return -1;
  const auto& known = turn.config().lenders[static_cast<std::size_t>(claim.owner)];
  for (const Loan& loan : claim.borrowed) {
    if (std::find(known.begin(), known.end(), loan.rank) == known.end()) return loan.rank;
  }
  return -1;
}

std::vector<Claim> complete(const Turn& turn, std::vector<Claim> claims) {
  return turn.rule().whole_claims ? whole_claims(claims) : claims;
}

bool unknown(const Turn& turn, ImageId id) {
  const ImageId beyond = turn.s.recovery.beyond;
  return turn.rule().beyond_unknown && id <= beyond && beyond.exists();
}

namespace {

bool may_send(const Turn& turn, const Claim& claim) {
  return turn.rule().found_anywhere || keeps(turn, claim.at, claim.owner);
}

bool reaches(const Turn& turn, const Claim& claim) {
  return may_send(turn, claim) && stranger(turn, claim) < 0;
}

/// The claims that can be fetched. The others come from a job that had other lenders.
std::vector<Claim> within_reach(const Turn& turn) {
  std::vector<Claim> claims = turn.s.recovery.claims;
  std::erase_if(claims, [&](const Claim& c) { return !reaches(turn, c); });
  return claims;
}

/// The error for a step that is newer than those which can be recovered with these options. A
/// person must decide whether the job may go on without that step.
Failure out_of_reach(const Turn& turn, ImageId newer) {
  Failure failure{ErrorKind::kUnrecoverable, -1, {}, {}, {}};
  const auto claims = complete(turn, turn.s.recovery.claims);
  const auto reached = complete(turn, within_reach(turn));
  for (const Claim& claim : claims) {
    const bool elsewhere = std::any_of(reached.begin(), reached.end(), [&](const Claim& other) {
      return other.id == newer && other.owner == claim.owner;
    });
    if (claim.id != newer || elsewhere) continue;
    const int other = stranger(turn, claim);
    failure.rank = claim.owner;
    failure.why = to_string(newer) + " needs the image of rank " + std::to_string(claim.owner) +
                  " that rank " + std::to_string(claim.at) + " has, which borrows from rank " +
                  std::to_string(other) +
                  ", no longer its lender; start with the same borrowed tensors as before, or "
                  "remove that vault (meshstage clean) to go back to an older step";
    break;
  }
  return failure;
}

/// Moves the claims to images of another number of ranks to Recovery::others: they are no copies of
/// this job's images. Keeps the newest one's id in Recovery::left.
void set_others_apart(Turn& turn) {
  Recovery& recovery = turn.s.recovery;
  std::erase_if(recovery.claims, [&](const Claim& claim) {
    if (claim.world_size == turn.config().world_size) return false;
    if (claim.id > recovery.left.id) recovery.left = {claim.id, claim.world_size};
    recovery.others.push_back(claim);
    return true;
  });
}

/// The error where there is an image of another number of ranks, and no step to go on from.
Failure other_world(const Turn& turn, int owner, const OldStep& step) {
  Failure failure{ErrorKind::kStructureMismatch, owner, {}, {}, {}};
  failure.why = owner < 0 ? "an image" : "the image of rank " + std::to_string(owner);
  failure.why += " (" + to_string(step.id) + ") was made by " + std::to_string(step.world_size) +
                 " ranks, this job has " + std::to_string(turn.config().world_size) + "; ";
  failure.why +=
      turn.config().any_world
          ? "any_world needs a step with every rank's image in the memory "
            "of this job's ranks, or in files that they reach, and there is none: " +
                turn.s.recovery.unpublished +
                "; start with the old number of ranks and call finish(), or persist a step" +
                (turn.s.recovery.damage.empty() ? "" : "; damaged: " + turn.s.recovery.damage)
          : "use the same number of ranks, or another job id, or set "
            "CheckpointerOptions::any_world (Python: any_world=True) to go on from the old files";
  return failure;
}

/// Asks for the claims that were left out. The ranks claim all images of those ids anew.
void ask_beyond(Turn& turn) {
  Recovery& recovery = turn.s.recovery;
  const ImageId up_to = recovery.beyond;
  const bool newer_told = !recovery.up_to.exists() || up_to < recovery.up_to;
  if (!turn.rule().ask_beyond || !newer_told) {
    Failure failure{ErrorKind::kInvalidState, -1, {}, {}, {}};
    failure.why = "no step newer than " + to_string(up_to) +
                  " has an image of every rank, and the ranks have more images and files of that "
                  "one than fit a message, so they cannot be compared; remove files of that step, "
                  "or images of other numbers of ranks, from the ranks' directories (meshstage ls "
                  "shows them)";
    return give_up(turn, failure, -1);
  }
  const auto comes_anew = [&](const Claim& c) {
    return asked_again(c.id, recovery.newer_than, up_to);
  };
  std::erase_if(recovery.claims, comes_anew);
  std::erase_if(recovery.others, comes_anew);
  recovery.up_to = up_to;
  ask_disk(turn, {recovery.newer_than, up_to});
}

/// For the error of a recovery that finds no step: whether the images that are left are of several
/// runs, so that a person does not wonder why they do not go together.
std::string runs_text(std::span<const Claim> claims) {
  std::map<std::uint64_t, std::uint64_t> runs;  // a generation of each
  for (const Claim& claim : claims) {
    runs[run_of(claim.id.generation)] = claim.id.generation;
  }
  if (runs.size() < 2) return {};
  std::string text = "; the images that are left are of " + std::to_string(runs.size()) +
                     " runs, which are never put together; the newest two: ";
  const auto newest = runs.rbegin();
  return text + run_text(newest->second) + ", " + run_text(std::next(newest)->second);
}

}  // namespace

void choose_at_root(Turn& turn) {
  State& s = turn.s;
  Recovery& recovery = s.recovery;
  const int world = turn.config().world_size;
  const bool apart = turn.rule().generations_apart;
  if (turn.config().any_world) set_others_apart(turn);
  if (recovery.phase == Phase::kSlots) {
    const ImageId covered = choose(complete(turn, within_reach(turn)), world, apart);
    recovery.newer_than = unknown(turn, covered) ? kNoImage : covered;
    return ask_disk(turn, {recovery.newer_than});
  }
  for (const Claim& claim : recovery.claims) {
    if (claim.world_size == world) continue;
    return give_up(turn, other_world(turn, claim.owner, {claim.id, claim.world_size}), -1);
  }
  std::vector<Claim> claims = within_reach(turn);
  if (!turn.rule().newest_covered) {
    std::erase_if(claims, [&](const Claim& c) { return c.id > recovery.evidence; });
  }
  const std::vector<Claim> whole = complete(turn, claims);
  Choice choice;
  choice.id = choose(whole, world, apart);
  recovery.old = newest_old(turn, choice.id);
  const ImageId taken = std::max(choice.id, recovery.old.id);
  if (publish_first(turn, taken, choice.id) || look_first(turn, taken)) return;
  const ImageId newer = choose(complete(turn, recovery.claims), world, apart);
  if (unknown(turn, std::max(taken, newer))) return ask_beyond(turn);
  if (newer > taken) return give_up(turn, out_of_reach(turn, newer), -1);
  if (!taken.exists() && recovery.left.id.exists()) {
    return give_up(turn, other_world(turn, -1, recovery.left), -1);
  }
  if (!taken.exists() && recovery.evidence.exists()) {
    Failure failure;
    failure.ranks = ranks_without_image(whole, world);
    failure.why = to_string(recovery.evidence) +
                  " was complete, but no step has an image of every "
                  "rank any more; missing in memory and on disk: rank";
    for (const int rank : failure.ranks) failure.why += " " + std::to_string(rank);
    failure.why += runs_text(recovery.claims);
    if (!recovery.damage.empty()) failure.why += "; damaged: " + recovery.damage;
    if (!failure.ranks.empty()) failure.rank = failure.ranks.front();
    return give_up(turn, failure, -1);
  }
  if (recovery.left.id > taken) {
    turn.act(LeftBehind{recovery.left, taken, recovery.unpublished});
  }
  if (recovery.old.id.exists() && (recovery.old.id > choice.id || !turn.rule().old_if_newer)) {
    choice.id = kNoImage;  // all ranks begin anew, with the old job's step
  } else {
    recovery.old = {};
  }
  if (choice.id.exists()) {
    const auto it = std::find_if(claims.begin(), claims.end(),
                                 [&](const Claim& claim) { return claim.id == choice.id; });
    if (it != claims.end()) choice.base = it->base;
    // Transfers are planned over all claims: a replica that cannot be made whole is still at its
    // place.
    claims = recovery.claims;
    std::erase_if(claims, [&](const Claim& c) { return !may_send(turn, c); });
    choice.transfers =
        plan_transfers(claims, choice.id, turn.config().holders, turn.rule().restore_holders, apart,
                       [&](const Claim& c) { return stranger(turn, c) < 0; });
  }
  recovery.claims.clear();
  recovery.others.clear();
  recovery.named.clear();
  recovery.written.clear();
  turn.reach(Point::kChosen, choice.id);
  learn_choice(turn, choice);
}

}  // namespace meshstage::protocol
