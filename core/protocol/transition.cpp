#include <algorithm>
#include <string>

#include <meshstage/core/protocol/transition.hpp>

#include "transition_impl.hpp"

namespace meshstage::protocol {

State make_state(std::shared_ptr<const Config> config) {
  State state;
  state.held.resize(config->wards.size());
  state.config = std::move(config);
  return state;
}

int child_index(const Turn& turn, int rank) {
  const auto& list = turn.config().children;
  const auto it = std::find(list.begin(), list.end(), rank);
  return it == list.end() ? -1 : static_cast<int>(it - list.begin());
}

int ward_index(const Turn& turn, int rank) {
  const auto& list = turn.config().wards;
  const auto it = std::find(list.begin(), list.end(), rank);
  return it == list.end() ? -1 : static_cast<int>(it - list.begin());
}

int borrower_index(const Turn& turn, int rank) {
  const auto& list = turn.config().borrowers;
  const auto it = std::find(list.begin(), list.end(), rank);
  return it == list.end() ? -1 : static_cast<int>(it - list.begin());
}

int slot_beside(const SlotPair& pair, ImageId keep) {
  const auto sealed = [&](int i) { return pair[i].state == Slot::State::kSealed; };
  if (keep.exists()) {
    if (sealed(0) && pair[0].id == keep) return 1;
    if (sealed(1) && pair[1].id == keep) return 0;
  }
  if (sealed(0) != sealed(1)) return sealed(0) ? 1 : 0;
  return pair[0].id <= pair[1].id ? 0 : 1;
}

void forget_generation(State& state) {
  state.base = state.newest_requested = kNoImage;
  state.base_orders = {};
  state.noted = false;
  state.rounds.clear();
  state.recovery = {};
  state.files.clear();
  state.wants_finish = false;
  state.finish_below = 0;
}

namespace {

// --- forming and breaking ---

void on(Turn& turn, const Formed& event) {
  State& s = turn.s;
  if (event.generation <= s.generation || s.mode == Mode::kFinished) {
    return turn.refuse(Refuse::Reason::kNotAbove, "generation " + std::to_string(event.generation) +
                                                      " is not above " +
                                                      std::to_string(s.generation));
  }
  forget_generation(s);
  s.own = {};
  std::fill(s.held.begin(), s.held.end(), SlotPair{});
  s.generation = event.generation;
  s.mode = Mode::kRecovering;
  turn.reach(Point::kFormed, kNoImage);
  start_recovery(turn);
}

/// Rule 7: before any link is closed, the rank that saw the death itself notes its cause in the
/// Store, and the cause travels along the tree. Promises stay: no slot is touched until the next
/// recovery.
void break_generation(Turn& turn, const Death& death, int heard_from, bool named_itself = false) {
  State& s = turn.s;
  if (s.mode != Mode::kRecovering && s.mode != Mode::kReady) return turn.stale("already broken");
  if (heard_from < 0) turn.act(NoteDeath{s.generation, death.rank, death.kind, death.why});
  turn.flood(death, heard_from);
  if (turn.rule().quarantine) turn.act(AbortTransfers{});
  for (const Round& round : s.rounds) {
    if (round.requested && round.verdict == Verdict::kOpen) {
      turn.act(Announce{round.id, Verdict::kOpen, death.rank, death.why});
    }
  }
  if (named_itself) {  // it lives: the loss names nobody here, or this rank would count as replaced
    turn.act(ReportLost{-1, death.kind, "rank " + std::to_string(death.rank) + " " + death.why});
  } else {
    turn.act(ReportLost{death.rank, death.kind, death.why});
  }
  s.mode = Mode::kBroken;
  forget_generation(s);
}

void on(Turn& turn, const Broken& event) {
  break_generation(turn, Death{event.rank, event.kind, event.why}, -1);
}

void on(Turn& turn, int from, const Death& death) { break_generation(turn, death, from); }

void on(Turn& turn, StoreAnswered event) {
  State& s = turn.s;
  const bool asking = s.mode == Mode::kRecovering && s.recovery.phase == Recovery::Phase::kAsking;
  if ((!asking && s.mode != Mode::kReady) || event.id.generation > s.generation) {
    return turn.stale("no answer is awaited");
  }
  if (!turn.rule().look) event.found = StoreAnswered::Found::kNewest;
  if (event.found == StoreAnswered::Found::kSuperseded) {
    return break_generation(turn, Death{-1, ErrorKind::kPeerLost, event.why}, -1);
  }
  if (event.found == StoreAnswered::Found::kFenced) {
    return break_generation(turn, Death{-1, ErrorKind::kFenced, event.why}, -1);
  }
  if (!asking) return answer_round(turn, event);
  if (event.found == StoreAnswered::Found::kNothing) {
    return break_generation(turn, Death{-1, ErrorKind::kPeerLost, event.why}, -1);
  }
  if (event.id.exists()) {
    s.noted = true;
    turn.reach(Point::kFirstNoted, event.id);
  }
  turn.reach(Point::kEstablished, event.id);
  become_ready(turn);
}

// --- files: rule 10 ---

/// The most file rounds that are open at a time. The oldest ones are forgotten; a newer one prunes
/// their files.
constexpr std::size_t kFileRounds = 16;

FileRound& file_round(State& s, ImageId id) {
  auto it = std::lower_bound(s.files.begin(), s.files.end(), id,
                             [](const FileRound& f, ImageId wanted) { return f.id < wanted; });
  if (it == s.files.end() || it->id != id) it = s.files.insert(it, FileRound{id, false, 0});
  return *it;
}

void prune(Turn& turn, ImageId id) {
  turn.send_down(AllOnDisk{id});
  std::erase_if(turn.s.files, [&](const FileRound& f) { return f.id <= id; });
  turn.act(Prune{id});
  turn.reach(Point::kPruned, id);
}

void tally_files(Turn& turn, const FileRound& round) {
  const ImageId id = round.id;
  if (round.mine && round.below == turn.everyone_below()) {
    if (turn.root()) return prune(turn, id);
    turn.send(turn.config().parent, OnDisk{id});
  }
  if (turn.s.files.size() > kFileRounds) turn.s.files.erase(turn.s.files.begin());
}

void on(Turn& turn, const Persisted& event) {
  if (turn.s.mode != Mode::kReady) return turn.stale("persisted for another generation");
  turn.reach(Point::kPersisted, event.id);
  if (!turn.rule().prune_together) turn.act(Prune{event.id});
  FileRound& round = file_round(turn.s, event.id);
  if (round.mine) return turn.stale("persisted twice");
  round.mine = true;
  tally_files(turn, round);
}

void on(Turn& turn, int from, const OnDisk& message) {
  const int child = child_index(turn, from);
  if (child < 0) return turn.malformed("on-disk from rank " + std::to_string(from) + ", no child");
  FileRound& round = file_round(turn.s, message.id);
  if ((round.below >> child & 1U) != 0) return turn.stale("on-disk twice");
  round.below = static_cast<std::uint8_t>(round.below | 1U << child);
  tally_files(turn, round);
}

void on(Turn& turn, int from, const AllOnDisk& message) {
  if (from != turn.config().parent) return turn.malformed("all-on-disk not from the parent");
  const auto& files = turn.s.files;
  const auto it = std::find_if(files.begin(), files.end(),
                               [&](const FileRound& f) { return f.id == message.id && f.mine; });
  if (it == files.end()) return turn.malformed("all-on-disk of a step that is not on disk here");
  prune(turn, message.id);
}

// --- the end: rule 9 ---

void finish(Turn& turn) {
  turn.send_down(Finish{});
  turn.s.mode = Mode::kFinished;
  forget_generation(turn.s);
  turn.reach(Point::kFinishing, kNoImage);
  turn.act(RemoveVault{});
}

void tally_finish(Turn& turn) {
  State& s = turn.s;
  if (!turn.rule().finish_together && s.wants_finish) return finish(turn);
  if (!s.wants_finish || s.finish_below != turn.everyone_below()) return;
  if (turn.root()) return finish(turn);
  turn.send(turn.config().parent, WantFinish{});
}

void on(Turn& turn, const Wished& event) {
  turn.s.wishes.end = turn.s.wishes.end || event.end;
  turn.s.wishes.persist = turn.s.wishes.persist || event.persist;
}

void on(Turn& turn, const FinishRequested&) {
  State& s = turn.s;
  if (s.mode != Mode::kReady || s.wants_finish) {
    return turn.refuse(Refuse::Reason::kNotReady, "finish() needs a recovered, unbroken group");
  }
  for (const Round& round : s.rounds) {
    if (round.requested && round.verdict == Verdict::kOpen) {
      return turn.refuse(Refuse::Reason::kBusy, to_string(round.id) + " is unfinished");
    }
  }
  s.wants_finish = true;
  if (turn.rule().finish_is_a_no) {
    fail_unrequested(turn, "this rank called finish() and did not stage it");
  }
  tally_finish(turn);
}

void on(Turn& turn, int from, const WantFinish&) {
  const int child = child_index(turn, from);
  if (child < 0) return turn.malformed("want-finish from rank " + std::to_string(from));
  turn.s.finish_below = static_cast<std::uint8_t>(turn.s.finish_below | 1U << child);
  tally_finish(turn);
}

void on(Turn& turn, int from, const Finish&) {
  if (from != turn.config().parent || !turn.s.wants_finish) {
    return turn.malformed("finish that this rank did not ask for");
  }
  finish(turn);
}

// --- dispatch ---

/// True for a message that only a rank sends which knows that the recovery is agreed.
bool implies_established(const Body& body) {
  return std::holds_alternative<Offer>(body) || std::holds_alternative<Accept>(body) ||
         std::holds_alternative<Sealed>(body) || std::holds_alternative<Yes>(body) ||
         std::holds_alternative<Complete>(body) || std::holds_alternative<Failed>(body) ||
         std::holds_alternative<OnDisk>(body) || std::holds_alternative<WantFinish>(body) ||
         std::holds_alternative<Borrow>(body) || std::holds_alternative<Differ>(body);
}

void on(Turn& turn, int from, const StreamStart& start) { turn.act(ReceiveStream{from, start}); }

void on(Turn& turn, int from, const Want& want) {
  const auto& borrowers = turn.config().borrowers;
  if (!std::binary_search(borrowers.begin(), borrowers.end(), from) ||
      turn.s.mode != Mode::kRecovering) {
    return turn.malformed("want from rank " + std::to_string(from) +
                          ", to which this rank does not lend");
  }
  turn.act(TakeWant{from, want});
}

void on(Turn& turn, int from, const Moved&) {
  turn.malformed("moved from rank " + std::to_string(from) + ", which is for the engine alone");
}

void on(Turn& turn, const Received& event) {
  State& s = turn.s;
  const Message& message = event.message;
  if (turn.rule().generations_apart && message.generation != s.generation) {
    return turn.stale("a message of another generation");  // rule 1
  }
  if (s.mode != Mode::kRecovering && s.mode != Mode::kReady) return turn.stale("not in a group");
  if (event.from < 0 || event.from >= turn.config().world_size ||
      event.from == turn.config().rank) {
    return turn.malformed("a message from rank " + std::to_string(event.from));
  }
  if (s.mode == Mode::kRecovering && implies_established(message.body)) {
    if (s.recovery.phase != Recovery::Phase::kWaiting) {
      return turn.malformed(std::string(name_of(message.body)) + " before the recovery was agreed");
    }
    become_ready(turn);
  }
  std::visit([&](const auto& body) { on(turn, event.from, body); }, message.body);
}

}  // namespace

void name_itself(Turn& turn, const std::string& why) {
  break_generation(turn, Death{turn.config().rank, ErrorKind::kPeerSilent, why}, -1, true);
}

void transition(State& state, const Event& event, std::vector<Action>& out) {
  Turn turn{state, out};
  std::visit([&](const auto& e) { on(turn, e); }, event);
}

}  // namespace meshstage::protocol
