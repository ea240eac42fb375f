#include <algorithm>
#include <string>

#include "transition_impl.hpp"

/// Rule 15: slow is not dead. An image that is on its way needs no time limit here: its link's
/// silence ends it. So a trainer waits as long as it takes. What no link shows is a rank whose own
/// trainer does not come, or whose disk hangs. That rank alone knows it, and names itself.
namespace meshstage::protocol {

namespace {

/// Passes on, once, that a trainer waits for the round.
void pass_on(Turn& turn, Round& round, std::uint32_t times, int heard_from) {
  if (times <= round.overdue) return turn.stale("it was passed on");
  round.overdue = times;
  turn.flood(Overdue{round.id, times}, heard_from);
  if (round.own == Part::kWriting) turn.act(CheckCopy{round.id});
}

/// True while this rank reads its images, or makes files of old ones, for the recovery.
bool is_reading(const Recovery& recovery) {
  using Phase = Recovery::Phase;
  const Phase phase = recovery.phase;
  return (phase == Phase::kSlots || phase == Phase::kFiles || phase == Phase::kPublish ||
          phase == Phase::kLook) &&
         !recovery.mine;
}

/// This rank names itself if the recovery waits for its trainer; else it passes on, once, that a
/// trainer waits. A rank that reads takes as long as its disk takes: it looks itself whether the
/// disk still gives something (ReadStuck).
void wait_for_recovery(Turn& turn, std::uint32_t times, int heard_from) {
  Recovery& recovery = turn.s.recovery;
  if (times <= recovery.overdue) return turn.stale("it was passed on");
  recovery.overdue = times;
  const int own = recovery.own_slot;
  const bool comparing = recovery.phase == Recovery::Phase::kFetch && !recovery.structure_ok &&
                         own >= 0 && turn.s.own[own].state == Slot::State::kSealed;
  if (comparing && turn.rule().names_itself) {
    return name_itself(turn, "has not called recover(), for which other ranks have waited");
  }
  if (is_reading(recovery) && !turn.rule().waits_for_disk) {
    return name_itself(turn, "is still reading its images, for which other ranks have waited");
  }
  turn.flood(Overdue{kNoImage, times}, heard_from);
}

}  // namespace

void on(Turn& turn, const Waited& event) {
  State& s = turn.s;
  if (s.mode == Mode::kRecovering) return wait_for_recovery(turn, event.times, -1);
  if (s.mode != Mode::kReady) return turn.stale("nothing is waited for");
  for (Round& round : s.rounds) {
    if (!round.requested) continue;
    if (round.verdict == Verdict::kOpen) {
      pass_on(turn, round, event.times, -1);
    } else if (round.own == Part::kWriting) {
      turn.act(CheckCopy{round.id});  // stage() waits for the end of the copy, too
    }
  }
}

void on(Turn& turn, const CopyStuck& event) {
  const auto& rounds = turn.s.rounds;
  const bool writing = std::any_of(rounds.begin(), rounds.end(), [&](const Round& round) {
    return round.id == event.id && round.own == Part::kWriting;
  });
  if (turn.s.mode != Mode::kReady || !writing) return turn.stale("that step is not being staged");
  name_itself(turn, event.why);
}

void on(Turn& turn, const ReadStuck& event) {
  const Mode mode = turn.s.mode;
  if (mode != Mode::kRecovering && mode != Mode::kReady) return turn.stale("not in a group");
  if (turn.rule().names_itself) name_itself(turn, event.why);
}

void on(Turn& turn, int from, const Overdue& overdue) {
  if (child_index(turn, from) < 0 && from != turn.config().parent) {
    return turn.malformed("overdue from rank " + std::to_string(from) + ", no neighbour");
  }
  State& s = turn.s;
  if (!overdue.id.exists()) {
    if (s.mode == Mode::kReady) return turn.stale("the recovery is over");
    return wait_for_recovery(turn, overdue.times, from);
  }
  if (s.mode == Mode::kRecovering) {
    if (s.recovery.phase != Recovery::Phase::kWaiting) {
      return turn.malformed("overdue before the recovery was agreed");
    }
    return turn.flood(overdue, from);  // Established is on its way to this rank
  }
  Round* const round = open_round(turn, overdue.id);
  if (round == nullptr) return;
  // A trainer that waits itself, because the outcome before is on its way, keeps nobody waiting.
  const bool waits = std::any_of(s.rounds.begin(), s.rounds.end(), [](const Round& other) {
    return other.requested && other.verdict == Verdict::kOpen;
  });
  if (!waits && turn.rule().names_itself) {
    return name_itself(turn, "has not staged step " + std::to_string(overdue.id.step) +
                                 ", for which other ranks have waited");
  }
  pass_on(turn, *round, overdue.times, from);
}

}  // namespace meshstage::protocol
