#include "tests/protocol/takings.hpp"

#include <algorithm>

#include <meshstage/core/vault/slot_word.hpp>

namespace meshstage::takings {

namespace {

using detail::begun;
using detail::SlotWord;
using detail::taken;

enum Broken : std::uint8_t { kNone, kLost, kTwoJobs, kTorn };
enum Outcome : std::uint8_t { kOpen, kComplete, kFailed };

SlotWord word_of(const Slot& slot) { return {static_cast<SlotState>(slot.state), slot.epoch}; }
void put(Slot& slot, SlotWord word) {
  slot.state = static_cast<std::uint8_t>(word.state);
  slot.epoch = static_cast<std::uint8_t>(word.epoch);
}
bool is_sealed(const Slot& slot) { return word_of(slot).state == SlotState::kSealed; }
bool has(const Slot& slot, int step) {
  return slot.header == step && slot.bytes[0] == step && slot.bytes[1] == step;
}

constexpr std::uint8_t byte(int value) { return static_cast<std::uint8_t>(value); }
constexpr std::uint8_t epoch_of(int launch) { return byte(1 + launch); }
constexpr std::uint8_t bit(int number) { return byte(1 << number); }

Process& process(State& s, int launch, int rank) {
  return s.processes[static_cast<std::size_t>(launch)][static_cast<std::size_t>(rank)];
}
const Process& process(const State& s, int launch, int rank) {
  return s.processes[static_cast<std::size_t>(launch)][static_cast<std::size_t>(rank)];
}
Vault& vault(State& s, int rank) { return s.vaults[static_cast<std::size_t>(rank)]; }
Slot& slot(State& s, int rank, int incarnation, int index) {
  return vault(s, rank)
      .at[static_cast<std::size_t>(incarnation)]
      .slots[static_cast<std::size_t>(index)];
}
Slot& slot(State& s, int rank, const Process& p) { return slot(s, rank, p.incarnation, p.slot); }

/// The process is gone, and the kernel lets go of its lock.
void end(State& s, int launch, int rank) {
  process(s, launch, rank) = {};
  process(s, launch, rank).at = At::kGone;
  for (Incarnation& incarnation : vault(s, rank).at) {
    if (incarnation.lock == 1 + launch) incarnation.lock = 0;
  }
}

/// The slot to overwrite while the base must stay: of two, the one that does not have it.
int beside(const Incarnation& incarnation, int base) {
  const auto holds = [&](std::size_t i) {
    return is_sealed(incarnation.slots[i]) && incarnation.slots[i].header == base;
  };
  if (base != 0 && holds(0)) return 1;
  if (base != 0 && holds(1)) return 0;
  return incarnation.slots[0].header <= incarnation.slots[1].header ? 0 : 1;
}

}  // namespace

State Model::start() const {
  State s{};
  for (int rank = 0; rank < bounds_.ranks; ++rank) {
    Vault& v = vault(s, rank);
    v.epoch = epoch_of(0);
    v.incarnations = 1;
    v.at[0].lock = 1;
    put(v.at[0].slots[0], {SlotState::kSealed, epoch_of(0)});
    v.at[0].slots[0].header = 1;
    v.at[0].slots[0].bytes = {1, 1};
    put(v.at[0].slots[1], {SlotState::kEmpty, epoch_of(0)});
    process(s, 0, rank).at = At::kIdle;
    process(s, 0, rank).base = process(s, 0, rank).staged = 1;
  }
  s.decided = 1;
  s.launches[0].established = 1 + 1;
  s.kills = byte(bounds_.kills);
  s.unanswered = byte(bounds_.unanswered);
  return s;
}

bool Model::all_at(const State& s, int launch, At at) const {
  for (int rank = 0; rank < bounds_.ranks; ++rank) {
    if (process(s, launch, rank).at != at) return false;
  }
  return true;
}

void Model::moves(const State& s, explorer::Moves<State>& out) const {
  for (int launch = 0; launch < bounds_.launches; ++launch) {
    for (int rank = 0; rank < bounds_.ranks; ++rank) {
      const At at = process(s, launch, rank).at;
      if (at <= At::kRead) {
        if (at != At::kGone && launch > 0) take(s, launch, rank, out);
      } else if (at < At::kReady) {
        bring(s, launch, rank, out);
      } else if (at >= At::kIdle) {
        stage(s, launch, rank, out);
      }
      faults(s, launch, rank, out);
    }
    decide(s, launch, out);
  }
}

void Model::take(const State& s, int launch, int rank, explorer::Moves<State>& out) const {
  State next = s;
  Process& p = process(next, launch, rank);
  Vault& v = vault(next, rank);
  const Rules& rules = bounds_.rules;
  const auto fenced = [&] {
    end(next, launch, rank);
    out.add({launch, rank, "finds the job taken by a newer launch, and ends"}, next);
  };
  switch (p.at) {
    case At::kAbsent:
      if (launch > s.newest + 1) return;  // the launches are numbered as they take the job
      if (s.newest > launch) return fenced();
      next.newest = byte(launch);
      p.at = bounds_.elsewhere ? At::kReady : (rules.raise_first ? At::kLock : At::kRead);
      return out.add({launch, rank, "starts: its launch takes the job"}, next);
    case At::kLock: {
      if (v.epoch > epoch_of(launch)) return fenced();
      Incarnation& newest = v.at[v.incarnations - 1U];
      if (newest.lock != 0 && rules.locked_is_not_written) {
        if (v.incarnations == kMostIncarnations) return;
        ++v.incarnations;
        p.incarnation = byte(v.incarnations - 1);
      } else {
        p.incarnation = byte(v.incarnations - 1);
      }
      v.at[p.incarnation].lock = byte(1 + launch);
      p.at = At::kRaise;
      return out.add({launch, rank, "owns its vault's incarnation", p.incarnation}, next);
    }
    case At::kRaise:
      if (v.epoch > epoch_of(launch)) return fenced();
      v.epoch = epoch_of(launch);
      p.at = At::kFreeze;
      return out.add({launch, rank, "raises its vault's epoch"}, next);
    case At::kFreeze: {
      const int incarnation = p.cursor / 2;
      Slot& there = slot(next, rank, incarnation, p.cursor % 2);
      const auto word = taken(word_of(there), epoch_of(launch));
      if (!word) return fenced();
      put(there, *word);
      const int frozen = p.cursor++;
      if (p.cursor == 2 * v.incarnations) {
        p.cursor = 0;
        p.at = rules.raise_first ? At::kRead : At::kClaimed;
      }
      return out.add({launch, rank, "raises the epoch in the word of slot", frozen}, next);
    }
    case At::kRead: {
      const int incarnation = p.cursor / 2;
      const Incarnation& from = v.at[static_cast<std::size_t>(incarnation)];
      const Slot& there = from.slots[static_cast<std::size_t>(p.cursor % 2)];
      const bool own = rules.raise_first ? incarnation == p.incarnation : false;
      const bool held = from.lock != 0 && from.lock != 1 + launch;
      const bool reads = own || (held ? rules.locked_is_read : rules.free_is_adopted);
      if (reads && is_sealed(there) && has(there, there.header)) {
        p.claims = byte(p.claims | bit(there.header));
      }
      const int read = p.cursor++;
      if (p.cursor == 2 * v.incarnations) {
        p.cursor = 0;
        p.at = rules.raise_first ? At::kClaimed : At::kLock;
      }
      return out.add({launch, rank, "reads slot", read}, next);
    }
    default:
      return;
  }
}

void Model::bring(const State& s, int launch, int rank, explorer::Moves<State>& out) const {
  State next = s;
  Process& p = process(next, launch, rank);
  Vault& v = vault(next, rank);
  Launch& l = next.launches[static_cast<std::size_t>(launch)];
  if (p.at == At::kClaimed) {
    if (l.chosen == 0) {  // the root chooses when it knows everybody's claims
      if (rank != 0 || !all_at(s, launch, At::kClaimed)) return;
      int covered = 0xff;
      for (int r = 0; r < bounds_.ranks; ++r) covered &= process(s, launch, r).claims;
      int chosen = 0;
      while (covered >> (chosen + 1) != 0) ++chosen;
      if (chosen == 0) {
        next.broken = kLost;  // step 1 was complete from the beginning
        return out.add({launch, rank, "finds nothing that all have"}, next);
      }
      l.chosen = byte(chosen);
      return out.add({launch, rank, "chooses step", chosen}, next);
    }
    p.step = l.chosen;
    for (std::size_t i = 0; i < 2; ++i) {
      const Slot& mine = v.at[p.incarnation].slots[i];
      if (!is_sealed(mine) || mine.header != l.chosen) continue;
      p.at = At::kReady;
      if (!has(mine, l.chosen)) next.broken = kTorn;
      return out.add({launch, rank, "has the chosen step in a slot of its own"}, next);
    }
    for (int i = 0; i < v.incarnations; ++i) {
      for (int k = 0; k < 2 && p.at == At::kClaimed; ++k) {
        const Slot& from = slot(next, rank, i, k);
        if (i == p.incarnation || !is_sealed(from) || from.header != l.chosen) continue;
        p.cursor = byte(2 * i + k);
        p.at = At::kBringBegin;
      }
    }
    if (p.at == At::kClaimed) {
      next.broken = kTorn;
      return out.add({launch, rank, "finds another step where it verified the chosen one"}, next);
    }
    p.slot = byte(beside(v.at[p.incarnation], 0));
    return out.add({launch, rank, "copies the chosen step from slot", p.cursor}, next);
  }
  Slot& mine = slot(next, rank, p);
  const Slot& from = slot(next, rank, p.cursor / 2, p.cursor % 2);
  switch (p.at) {
    case At::kBringBegin: {
      const auto word = begun(word_of(mine), epoch_of(launch));
      if (!word) {
        end(next, launch, rank);
        return out.add({launch, rank, "is fenced by its own slot's word, and ends"}, next);
      }
      put(mine, *word);
      p.at = At::kBringHeader;
      return out.add({launch, rank, "begins a slot of its own"}, next);
    }
    case At::kBringHeader:
      mine.header = p.step;
      p.at = At::kBring0;
      return out.add({launch, rank, "writes its header"}, next);
    case At::kBring0:
      mine.bytes[0] = from.bytes[0];
      p.at = At::kBring1;
      return out.add({launch, rank, "copies the first bytes"}, next);
    case At::kBring1:
      mine.bytes[1] = from.bytes[1];
      p.at = At::kBringSeal;
      return out.add({launch, rank, "copies the last bytes"}, next);
    case At::kBringSeal: {
      const auto word = detail::sealed(word_of(mine), epoch_of(launch));
      if (!word) {
        end(next, launch, rank);
        return out.add({launch, rank, "is fenced by its own slot's word, and ends"}, next);
      }
      put(mine, *word);
      if (!has(mine, p.step)) next.broken = kTorn;
      p.at = At::kReady;
      return out.add({launch, rank, "seals it"}, next);
    }
    default:
      return;
  }
}

void Model::stage(const State& s, int launch, int rank, explorer::Moves<State>& out) const {
  State next = s;
  Process& p = process(next, launch, rank);
  Launch& l = next.launches[static_cast<std::size_t>(launch)];
  const Rules& rules = bounds_.rules;
  const auto fenced = [&] {
    end(next, launch, rank);
    out.add({launch, rank, "is fenced by the slot's word, and ends"}, next);
  };
  switch (p.at) {
    case At::kIdle: {
      const int last = launch == 0 ? 1 + bounds_.old_steps : 3 + launch;
      const int step = launch == 0 ? p.staged + 1 : 3 + launch;
      if (step > last || p.staged >= step) return;
      if (l.voting < step) {
        l.voting = byte(step);
        l.votes = l.outcome = l.looked = 0;
      }
      p.step = byte(step);
      p.slot = byte(beside(vault(next, rank).at[p.incarnation], p.base));
      const SlotWord word = word_of(slot(next, rank, p));
      p.loaded_state = byte(static_cast<int>(word.state));
      p.loaded_epoch = byte(static_cast<int>(word.epoch));
      p.at = At::kSwap;
      return out.add({launch, rank, "loads the word of a slot beside its base, for step", step},
                     next);
    }
    case At::kSwap: {
      Slot& mine = slot(next, rank, p);
      const SlotWord there = word_of(mine);
      SlotWord loaded{static_cast<SlotState>(p.loaded_state), p.loaded_epoch};
      if (!rules.swap) loaded = there;  // a check, and then a store
      if (loaded != there) {
        p.at = At::kIdle;
        return out.add({launch, rank, "finds the word changed, and looks again"}, next);
      }
      const std::uint64_t owned = rules.swap && rules.owned_epoch ? epoch_of(launch) : loaded.epoch;
      const auto word = begun(loaded, owned);
      if (!word) return fenced();
      put(mine, *word);
      p.at = At::kHeader;
      return out.add({launch, rank, "begins the slot, for step", p.step}, next);
    }
    case At::kHeader:
      slot(next, rank, p).header = p.step;
      p.at = At::kBytes0;
      return out.add({launch, rank, "writes its header"}, next);
    case At::kBytes0:
    case At::kBytes1: {
      const std::size_t half = p.at == At::kBytes0 ? 0 : 1;
      Slot& mine = slot(next, rank, p);
      mine.bytes[half] = p.step;
      if (is_sealed(mine)) next.broken = kTorn;
      p.at = half == 0 ? At::kBytes1 : At::kSeal;
      return out.add({launch, rank, half == 0 ? "stores the first bytes" : "stores the last bytes"},
                     next);
    }
    case At::kSeal: {
      Slot& mine = slot(next, rank, p);
      const SlotWord there = word_of(mine);
      const std::uint64_t owned = rules.swap && rules.owned_epoch ? epoch_of(launch) : there.epoch;
      const auto word = rules.swap ? detail::sealed(there, owned)
                                   : std::optional(SlotWord{SlotState::kSealed, there.epoch});
      if (!word) return fenced();
      put(mine, *word);
      if (!has(mine, p.step)) next.broken = kTorn;
      p.at = At::kVoted;
      p.staged = p.step;
      if (l.voting == p.step) l.votes = byte(l.votes | bit(rank));
      return out.add({launch, rank, "seals the slot and votes yes for step", p.step}, next);
    }
    case At::kVoted:
      if (l.voting == p.step && l.outcome == kOpen) return;
      // Where a later step is open, its offer says what became of this one.
      if (l.complete == p.step) p.base = p.step;
      p.at = At::kIdle;
      return out.add({launch, rank, "learns the outcome of step", p.step}, next);
    default:
      return;
  }
}

/// The root: of a step, and of the recovery.
void Model::decide(const State& s, int launch, explorer::Moves<State>& out) const {
  const Rules& rules = bounds_.rules;
  const Launch& now = s.launches[static_cast<std::size_t>(launch)];
  if (process(s, launch, 0).at <= At::kGone) return;
  State next = s;
  Launch& l = next.launches[static_cast<std::size_t>(launch)];
  const bool newest = s.newest == launch;
  const auto fenced = [&] {
    end(next, launch, 0);
    out.add({launch, 0, "looks at the Store: its launch is not the newest; it ends"}, next);
  };
  if (now.established == 0) {
    if (!all_at(s, launch, At::kReady)) return;
    if (rules.look && !newest) return fenced();
    l.established = byte(1 + now.chosen);
    if (!bounds_.elsewhere && now.chosen < s.decided) next.broken = kLost;
    for (int rank = 0; rank < bounds_.ranks; ++rank) {
      Process& p = process(next, launch, rank);
      p.base = p.staged = now.chosen;
      if (!bounds_.elsewhere) p.at = At::kIdle;
    }
    return out.add({launch, 0, "looks, and establishes step", now.chosen}, next);
  }
  if (now.voting == 0 || now.outcome != kOpen) return;
  const bool all = now.votes == bit(bounds_.ranks) - 1;
  const bool early = rules.look && !rules.look_after_last_yes;
  if (early && now.looked == 0 && newest) {
    l.looked = 1;
    out.add({launch, 0, "looks at the Store: its launch is the newest"}, next);
    next = s;
  }
  if (!all) return;
  if (rules.look && !early && s.unanswered > 0) {
    --next.unanswered;
    l.outcome = kFailed;
    out.add({launch, 0, "looks, and the Store does not answer: the step fails", now.voting}, next);
    next = s;
  }
  if (early && now.looked == 0) return;
  if (rules.look && !early && !newest) return fenced();
  l.outcome = kComplete;
  l.complete = now.voting;
  next.decided = std::max(next.decided, now.voting);
  for (int newer = launch + 1; newer < bounds_.launches; ++newer) {
    const Launch& other = s.launches[static_cast<std::size_t>(newer)];
    if (other.established != 0 && other.chosen < now.voting) next.broken = kTwoJobs;
  }
  out.add({launch, 0, "has all votes, and decides: complete is step", now.voting}, next);
}

void Model::faults(const State& s, int launch, int rank, explorer::Moves<State>& out) const {
  if (s.kills == 0 || process(s, launch, rank).at <= At::kGone) return;
  State next = s;
  --next.kills;
  end(next, launch, rank);
  out.add({launch, rank, "IS KILLED"}, next);
}

std::string Model::violation(const State& s) const {
  switch (s.broken) {
    case kLost:
      return "a complete step is lost, though its bytes lie in a vault that can be reached";
    case kTwoJobs:
      return "two jobs acknowledge: an older launch decides beside a newer one";
    case kTorn:
      return "a torn image is taken for whole";
    default:
      return {};
  }
}

const char* Model::milestone(const State& s) const {
  for (std::size_t launch = 1; launch < kMostLaunches; ++launch) {
    const Launch& l = s.launches[launch];
    if (l.outcome == kComplete) return "a newer launch completes a step";
    if (l.established > 2) return "a newer launch establishes what the older one decided last";
  }
  return nullptr;
}

}  // namespace meshstage::takings
