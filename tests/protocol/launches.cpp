#include "tests/protocol/launches.hpp"

#include <algorithm>

#include <meshstage/core/comm/launch.hpp>

namespace meshstage::launches {

namespace {

using launch::Admission;
using launch::View;

enum Outcome : std::uint8_t { kForming, kFormed, kAbandoned };
enum Broken : std::uint8_t { kNone, kMixed, kTouched, kOverrun };

constexpr std::uint8_t byte(int value) { return static_cast<std::uint8_t>(value); }

Process& process(State& s, int launch, int rank) {
  return s.processes[static_cast<std::size_t>(launch)][static_cast<std::size_t>(rank)];
}
const Process& process(const State& s, int launch, int rank) {
  return s.processes[static_cast<std::size_t>(launch)][static_cast<std::size_t>(rank)];
}
Claim& newest(State& s) { return s.claim[s.claims - 1U]; }
const Claim& newest(const State& s) { return s.claim[s.claims - 1U]; }
bool running(const Process& p) {
  return p.at != At::kAbsent && p.at != At::kEnded && p.stopped == 0;
}
std::string name_of(int launch) { return std::string(1, "OXY"[launch]); }

/// The process that joined that claim as that rank; null if none did.
const Process* joined(const State& s, const Claim& claim, int rank) {
  const int by = claim.place[static_cast<std::size_t>(rank)];
  return by == 0 ? nullptr : &process(s, by - 1, rank);
}

/// Who is that rank of the newest claim's launch: joined it, claimed it, or was in the generation
/// that it formed last. Null: nobody.
const Process* holder_of(const State& s, int rank) {
  const Claim& claim = newest(s);
  if (const Process* const p = joined(s, claim, rank)) return p;
  if (claim.by % 4 == rank) return &process(s, claim.by / 4, rank);
  for (int i = s.claims - 2; i >= 0 && claim.worked != 0; --i) {
    const Claim& before = s.claim[static_cast<std::size_t>(i)];
    if (before.outcome == kFormed) return joined(s, before, rank);
  }
  return nullptr;
}

}  // namespace

State Model::start() const {
  State s{};
  s.claims = 1;
  s.claim[0] = {
      1, bounds_.forming ? kForming : kFormed, bounds_.forming ? byte(0) : byte(1), 0, {1, 1}};
  s.stops = byte(bounds_.stops);
  s.kills = byte(bounds_.kills);
  s.impatient = byte(bounds_.impatient);
  for (int rank = 0; rank < kRanks; ++rank) {
    Process& p = process(s, 0, rank);
    p.at = bounds_.forming ? At::kEnded : At::kRuns;
    p.killed = bounds_.forming ? 1 : 0;
    p.claim = p.epoch = s.epoch[static_cast<std::size_t>(rank)] = 1;
    p.member = 1;
  }
  return s;
}

bool Model::healthy(const State& s) const {
  return !bounds_.forming && s.stops == bounds_.stops && s.kills == bounds_.kills &&
         s.impatient == bounds_.impatient;
}

void Model::moves(const State& s, explorer::Moves<State>& out) const {
  if (s.claims >= kMostClaims - 1) return;
  for (int launch = 0; launch < bounds_.launches; ++launch) {
    for (int rank = 0; rank < kRanks; ++rank) {
      const Process& p = process(s, launch, rank);
      faults(s, launch, rank, out);
      // A renewal that was under way when the process was stopped arrives later.
      if (p.under_way != 0) {
        State next = s;
        process(next, launch, rank).under_way = 0;
        for (auto& of : next.processes) {
          for (Process& watcher : of) {
            auto& seen = watcher.seen[static_cast<std::size_t>(rank)];
            if (watcher.at == At::kLook) seen = byte(std::min(2, seen + 1));
          }
        }
        out.add({launch, rank, "(stopped): a renewal that was under way arrives"}, next);
      }
      if (p.stopped != 0) continue;
      if (p.at == At::kLook || (p.at == At::kAbsent && launch > 0)) look(s, launch, rank, out);
      if (p.at >= At::kCreate && p.at <= At::kWait) come(s, launch, rank, out);
      if (p.at == At::kRuns) run(s, launch, rank, out);
      // A launcher ends all ranks of a start when one of them was refused.
      const Process& other = process(s, launch, 1 - rank);
      if (launch > 0 && running(p) && other.at == At::kEnded && other.killed == 0) {
        State next = s;
        process(next, launch, rank).at = At::kEnded;
        out.add({launch, rank, "is ended by its launcher, because the other was refused"}, next);
      }
    }
  }
}

void Model::look(const State& s, int launch, int rank, explorer::Moves<State>& out) const {
  State next = s;
  Process& p = process(next, launch, rank);
  if (p.at == At::kAbsent) {
    p.at = At::kLook;
    if (!bounds_.rules.claim_first) next.epoch[static_cast<std::size_t>(rank)] += 1;
    return out.add({launch, rank, "starts"}, next);
  }
  const Claim& claim = newest(s);
  View view;
  view.exists = true;
  view.launch = name_of(claim.launch - 1);
  view.world_size = bounds_.forming && claim.launch == 1 ? kRanks + 2 : kRanks;
  view.worked = claim.worked != 0;
  view.outcome = static_cast<View::Outcome>(claim.outcome);
  const Process* const holder = holder_of(s, rank);
  view.seat_free = holder == nullptr || holder->at == At::kEnded || holder->stopped != 0;
  int gone = 0;
  int there = 0;
  int answered = 0;
  int renewed = 0;
  bool silent = false;
  for (int r = 0; r < kRanks; ++r) {
    const Process* other = joined(s, claim, r);
    // Whoever claimed it is about to join it.
    if (other == nullptr && claim.by % 4 == r) other = &process(s, claim.by / 4, r);
    if (other == nullptr) continue;
    ++there;
    if (other->at == At::kEnded) ++gone;
    if (other->stopped != 0) silent = true;
    if (other->at != At::kEnded && p.seen[static_cast<std::size_t>(r)] > 0) ++answered;
    const int needed = bounds_.rules.twice ? 2 : 1;
    if (p.seen[static_cast<std::size_t>(r)] >= needed) ++renewed;
  }
  const auto decide = [&](View::Signs signs, const char* how) {
    State then = next;
    Process& me = process(then, launch, rank);
    view.signs = signs;
    launch::Comer comer;
    comer.launch =
        bounds_.unnamed && me.member == 0 ? "" : name_of(me.member != 0 ? me.as - 1 : launch);
    if (!bounds_.rules.launch_owns && me.member == 0) comer.launch.clear();
    comer.world_size = kRanks;
    comer.member = me.member != 0;
    me.claim = s.claims;
    me.seen = {};
    switch (launch::admit(view, comer)) {
      case Admission::kJoin:
        me.at = At::kPlace;
        return out.add({launch, rank, how}, then);
      case Admission::kClaim:
        me.at = At::kCreate;
        me.as = claim.launch;
        return out.add({launch, rank, how}, then);
      case Admission::kTake:
        me.at = At::kCreate;
        me.as = byte(1 + launch);
        return out.add({launch, rank, how}, then);
      case Admission::kWatch:
        return;  // as if it had not looked
      case Admission::kRefused:
      case Admission::kOtherWorld:
      case Admission::kOtherOptions:
      case Admission::kFenced:
        me = {};
        me.at = At::kEnded;
        return out.add({launch, rank, "is refused, and ends"}, then);
    }
  };
  if (claim.outcome == kFormed) {
    const int needed = bounds_.rules.every_rank ? kRanks : 1;
    if (gone > 0) {
      if (gone == there) decide(View::Signs::kLost, "finds the newest generation gone");
      if (gone < there && answered > 0) {
        decide(bounds_.rules.survivors_first ? View::Signs::kBroken : View::Signs::kLost,
               "finds a rank of the newest generation gone, another alive");
      }
    } else if (renewed >= needed) {
      decide(View::Signs::kAlive, "saw the newest generation renew");
    } else if (silent) {
      decide(View::Signs::kLost, "finds a rank of the newest generation silent");
    }
    decide(View::Signs::kUnknown, "comes back, or finds its seat free");
    if (s.impatient > 0) {
      --next.impatient;
      decide(View::Signs::kLost, "takes a rank of the newest generation for silent");
    }
    return;
  }
  const bool all_gone = there > 0 && gone == there;
  if ((all_gone || silent) && bounds_.rules.lost_forming) {
    return decide(View::Signs::kLost,
                  "finds those gone or silent that came to the newest generation");
  }
  const bool known = there > 0 && !all_gone && !silent;
  decide(known ? View::Signs::kAlive : View::Signs::kUnknown, "finds a generation forming");
  if (s.impatient > 0 && there > 0 && process(s, launch, rank).member == 0) {
    --next.impatient;
    decide(View::Signs::kLost, "takes those for silent that came to the newest generation");
  }
}

void Model::come(const State& s, int launch, int rank, explorer::Moves<State>& out) const {
  State next = s;
  Process& p = process(next, launch, rank);
  const auto at = static_cast<std::size_t>(rank);
  const auto back = [&](const char* why) {
    p.at = At::kLook;
    p.seen = {};
    out.add({launch, rank, why}, next);
  };
  switch (p.at) {
    case At::kCreate: {
      if (s.claims != p.claim) return back("finds that another claimed first, and looks again");
      const bool worked =
          s.claim[s.claims - 1U].worked != 0 && s.claim[s.claims - 1U].launch == p.as;
      if (newest(s).outcome == kForming) newest(next).outcome = kAbandoned;
      next.claim[next.claims++] = {p.as, kForming, byte(worked ? 1 : 0), 0, {}};
      Claim& mine = next.claim[next.claims - 1U];
      mine.by = byte(4 * launch + rank);
      p.claim = next.claims;
      p.at = At::kPlace;
      return out.add({launch, rank, "claims generation", next.claims}, next);
    }
    case At::kPlace: {
      Claim& claim = next.claim[p.claim - 1U];
      if (p.claim != s.claims || claim.outcome != kForming) {
        return back("finds its generation abandoned, and looks again");
      }
      if (claim.place[at] != 0) {
        const Process& holder = process(s, claim.place[at] - 1, rank);
        if (holder.at != At::kEnded && holder.at != At::kLook) return;  // waits
        claim.outcome = kAbandoned;
        return back("abandons a generation whose place was taken by a process that is gone");
      }
      claim.place[at] = byte(1 + launch);
      p.at = At::kAttach;
      return out.add({launch, rank, "joins generation", p.claim}, next);
    }
    case At::kAttach: {
      if (p.epoch == 0) {
        const int epoch = bounds_.rules.claim_is_epoch ? p.claim : s.epoch[at] + 1;
        if (s.epoch[at] >= epoch) {
          p.at = At::kEnded;
          return out.add({launch, rank, "finds its vault taken since, and ends"}, next);
        }
        p.epoch = next.epoch[at] = byte(epoch);
      }
      p.at = At::kWait;
      return out.add({launch, rank, "takes its vault"}, next);
    }
    case At::kWait: {
      Claim& claim = next.claim[p.claim - 1U];
      if (claim.outcome == kAbandoned)
        return back("finds its generation abandoned, and looks again");
      if (claim.outcome == kFormed) return;
      bool all = true;
      for (int r = 0; r < kRanks; ++r) {
        const Process* const other = joined(s, claim, r);
        all = all && other != nullptr && other->at == At::kWait && other->claim == p.claim;
        if (other != nullptr && (other->at == At::kEnded || other->claim != p.claim)) {
          claim.outcome = kAbandoned;
          return back("sees a rank go while forming, and abandons the generation");
        }
      }
      if (!all || rank != 0) return;
      claim.outcome = kFormed;
      claim.worked = 1;
      for (int r = 0; r < kRanks; ++r) {
        const int by = claim.place[static_cast<std::size_t>(r)] - 1;
        Process& member = process(next, by, r);
        member.at = At::kRuns;
        member.member = 1;
        member.as = claim.launch;
        const bool own = by == claim.launch - 1;
        if (!own && s.claim[p.claim - 1U].worked == 0 && !bounds_.unnamed) next.broken = kMixed;
      }
      return out.add({launch, rank, "finds all connected: formed is generation", p.claim}, next);
    }
    default:
      return;
  }
}

/// A process that runs: shows signs of life, looks at the Store before it decides, notices a death.
void Model::run(const State& s, int launch, int rank, explorer::Moves<State>& out) const {
  const Process& p = process(s, launch, rank);
  const auto at = static_cast<std::size_t>(rank);
  State next = s;
  bool watched = false;
  for (auto& of : next.processes) {
    for (Process& watcher : of) {
      if (watcher.at != At::kLook || watcher.seen[at] >= 2 || p.claim != s.claims) continue;
      ++watcher.seen[at];
      watched = true;
    }
  }
  if (watched) out.add({launch, rank, "renews its sign of life"}, next);
  next = s;
  if (s.epoch[at] != p.epoch) {
    // Whose claim is newest, and whose vault was taken all the same?
    if (healthy(s)) next.broken = kTouched;
    if (newest(s).launch == p.as || p.claim == s.claims) next.broken = kOverrun;
    process(next, launch, rank).at = At::kEnded;
    return out.add({launch, rank, "is fenced: its vault was taken"}, next);
  }
  const Process* const other = joined(s, s.claim[p.claim - 1U], 1 - rank);
  const bool lost = other != nullptr && (other->at == At::kEnded || other->claim != p.claim);
  if (p.claim != s.claims || lost) {
    if (p.claim != s.claims && healthy(s)) next.broken = kTouched;
    process(next, launch, rank).at = At::kLook;
    process(next, launch, rank).seen = {};
    if (process(next, launch, rank).as == 0) process(next, launch, rank).as = 1;
    out.add({launch, rank, "sees that its generation is over, and comes back"}, next);
  }
}

void Model::faults(const State& s, int launch, int rank, explorer::Moves<State>& out) const {
  const Process& p = process(s, launch, rank);
  if (!running(p)) return;
  const bool alone = std::all_of(s.processes.begin() + 1, s.processes.end(), [](const auto& of) {
    return of[0].at == At::kAbsent && of[1].at == At::kAbsent;
  });
  if (s.stops > 0 && launch == 0 && alone) {
    for (const int under_way : {0, 1}) {
      State next = s;
      --next.stops;
      process(next, launch, rank).stopped = 1;
      process(next, launch, rank).under_way = byte(under_way);
      out.add({launch, rank, "IS STOPPED for ever"}, next);
    }
  }
  if (s.kills > 0) {
    State next = s;
    --next.kills;
    process(next, launch, rank).at = At::kEnded;
    process(next, launch, rank).killed = 1;
    out.add({launch, rank, "IS KILLED"}, next);
  }
}

std::string Model::violation(const State& s) const {
  switch (s.broken) {
    case kMixed:
      return "a generation has ranks of two starts";
    case kTouched:
      return "a healthy job is disturbed by a start that it should have outlived";
    case kOverrun:
      return "an older start takes the vault of a newer one";
    default:
      return {};
  }
}

std::string Model::at_rest(const State& s) const {
  if (s.claims >= kMostClaims - 1) return {};
  bool killed = false;
  bool waits = false;
  for (int launch = 0; launch < bounds_.launches; ++launch) {
    bool all = true;
    for (int rank = 0; rank < kRanks; ++rank) {
      const Process& p = process(s, launch, rank);
      all = all && p.at == At::kRuns && p.stopped == 0 && p.claim == s.claims;
      killed = killed || p.killed != 0;
      waits = waits || (p.at > At::kAbsent && p.at < At::kRuns && p.stopped == 0);
    }
    if (all) return {};
  }
  // A seat whose process was killed stays empty here, and those who wait for it do so rightly.
  if (killed && waits && !bounds_.forming) return {};
  // Whoever takes the job from a rank that was only slow may be ended by its own launcher.
  if (bounds_.impatient > 0) return {};
  return waits ? "processes wait for ever, though nobody runs" : "every start is gone";
}

const char* Model::milestone(const State& s) const {
  for (int launch = 1; launch < bounds_.launches; ++launch) {
    if (process(s, launch, 0).at == At::kRuns && process(s, launch, 1).at == At::kRuns) {
      return "a newer start runs";
    }
    if (process(s, launch, 0).at == At::kEnded) return "a newer start is refused";
  }
  return nullptr;
}

}  // namespace meshstage::launches
