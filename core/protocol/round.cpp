#include <algorithm>
#include <string>

#include "transition_impl.hpp"

/// Rules 2, 3 and 4: staging a step, holding the wards' replicas, voting, the outcome.
///
/// A yes climbs the tree: a rank reports it once the rank itself and all ranks below it vote yes.
/// Complete comes down from the root. A no is not counted: the rank that votes no knows the
/// outcome, and floods it.
namespace meshstage::protocol {

namespace {

/// Of more rounds than this only the open ones are remembered.
constexpr std::size_t kRememberedRounds = 64;

Round* find_round(State& s, ImageId id) {
  const auto it = std::find_if(s.rounds.begin(), s.rounds.end(),
                               [&](const Round& round) { return round.id == id; });
  return it == s.rounds.end() ? nullptr : &*it;
}

bool writes(const Round& round) {
  const auto busy = [](const WardPart& ward) { return ward.part == Part::kWriting; };
  return round.own == Part::kWriting || std::any_of(round.wards.begin(), round.wards.end(), busy);
}

Round& round_of(Turn& turn, ImageId id) {
  auto& rounds = turn.s.rounds;
  auto it = std::lower_bound(rounds.begin(), rounds.end(), id,
                             [](const Round& round, ImageId wanted) { return round.id < wanted; });
  if (it != rounds.end() && it->id == id) return *it;
  Round fresh;
  fresh.id = id;
  fresh.wards.resize(turn.config().wards.size());
  fresh.borrows.resize(turn.config().borrowers.size());
  rounds.insert(it, std::move(fresh));
  if (rounds.size() > kRememberedRounds) {
    const auto over = std::find_if(rounds.begin(), rounds.end(), [&](const Round& round) {
      return round.id != id && round.verdict != Verdict::kOpen && !writes(round);
    });
    if (over != rounds.end()) rounds.erase(over);
  }
  return *find_round(turn.s, id);
}

/// Makes the step failed, because this rank votes no or heard of a no. Tells every tree neighbour
/// except the one from which the no came. The step's slots may be reused once writes to them have
/// ended.
void fail(Turn& turn, Round& round, int rank, const std::string& why, int heard_from) {
  if (round.verdict != Verdict::kOpen) return;
  round.verdict = Verdict::kFailed;
  turn.flood(Failed{round.id, rank, why}, heard_from);
  if (writes(round)) turn.act(AbortRound{round.id});
  for (WardPart& ward : round.wards) {
    if (ward.part == Part::kWaiting) ward.part = Part::kFailed;
  }
  if (round.requested) turn.act(Announce{round.id, Verdict::kFailed, rank, why});
  turn.reach(Point::kFailed, round.id);
}

void fail_here(Turn& turn, Round& round, const std::string& why) {
  fail(turn, round, turn.config().rank, why, -1);
}

Wishes both(const Wishes& a, const Wishes& b) {
  return {a.end || b.end, a.persist || b.persist, std::max(a.since_disk, b.since_disk)};
}

/// Makes the step complete, because every rank voted yes. `id` is the base of the next steps, and
/// all rounds before it are over.
void complete(Turn& turn, ImageId id, const Orders& orders) {
  State& s = turn.s;
  turn.send_down(Complete{id, orders});
  s.base = id;
  s.base_orders = orders;
  if (const Round* round = find_round(s, id); round != nullptr && round->asked_persist) {
    s.wishes.persist = false;
  }
  if (turn.config().persist_every > 0) {
    s.wishes.since_disk = orders.persist ? 0 : s.wishes.since_disk + 1;
  }
  std::erase_if(s.rounds, [&](const Round& round) { return round.id <= id; });
  turn.act(Announce{id, Verdict::kComplete, -1, {}, orders});
  turn.reach(Point::kComplete, id);
}

/// At the root: makes the step complete, with orders for what any rank wishes for.
void decide(Turn& turn, Round& round) {
  const ImageId id = round.id;
  round.asked_persist = turn.s.wishes.persist;
  const Wishes all = both(turn.s.wishes, round.below);
  const std::uint64_t every = turn.config().persist_every;
  const bool due = every > 0 && all.since_disk + 1 >= every;
  turn.reach(Point::kDecided, id);
  complete(turn, id, Orders{all.end, all.persist || due});
}

/// Votes yes if own image, replicas and lent bytes are as a yes promises. Reports the yes to the
/// parent if all ranks below have voted, too; the root asks the Store instead. The round may be
/// gone afterwards.
void try_vote(Turn& turn, Round& round) {
  if (round.verdict != Verdict::kOpen || round.reported) return;
  if (!round.voted) {
    const bool replicas =
        std::all_of(round.wards.begin(), round.wards.end(),
                    [](const WardPart& ward) { return ward.part == Part::kSealed; });
    if (round.own != Part::kSealed) return;
    if (!replicas && turn.rule().vote_needs_replicas) return;
    const bool all_known = std::all_of(round.borrows.begin(), round.borrows.end(),
                                       [](const auto& borrow) { return borrow.has_value(); });
    if (!all_known && turn.rule().vote_needs_lent) return;
    round.voted = true;
    turn.reach(Point::kVoted, round.id);
  }
  if (round.below_yes != turn.everyone_below() && turn.rule().all_must_vote) return;
  round.reported = true;
  round.asked_persist = turn.s.wishes.persist;
  const ImageId id = round.id;
  if (!turn.root()) {
    return turn.send(turn.config().parent, Yes{id, both(turn.s.wishes, round.below)});
  }
  if (turn.s.noted && !turn.rule().look) return decide(turn, round);
  const bool note = !turn.s.noted;
  if (note && !turn.rule().note_first) decide(turn, round);
  turn.act(AskStore{id, note});  // answer_round goes on
}

/// Begins the round of a request and makes it the newest; nullptr, with a Refuse or a failed round,
/// if it cannot begin now.
Round* request(Turn& turn, std::uint64_t step, bool skip) {
  State& s = turn.s;
  const ImageId id{s.generation, step};
  if (s.mode != Mode::kReady || s.wants_finish) {
    turn.refuse(Refuse::Reason::kNotReady, "stage() needs a recovered, unbroken group");
    return nullptr;
  }
  if (id <= s.newest_requested) {
    turn.refuse(Refuse::Reason::kNotAbove, "step " + std::to_string(step) + " is not above step " +
                                               std::to_string(s.newest_requested.step) +
                                               ", the newest of this generation");
    return nullptr;
  }
  for (const Round& round : s.rounds) {
    if (skip || round.id >= id) break;
    const bool promised = round.requested && round.verdict == Verdict::kOpen && turn.rule().promise;
    if (promised || round.own == Part::kWriting) {  // rule 3
      turn.refuse(Refuse::Reason::kBusy,
                  "step " + std::to_string(round.id.step) + " is unfinished");
      return nullptr;
    }
  }
  s.newest_requested = id;
  for (Round& round : s.rounds) {
    if (round.id < id && !round.requested) fail_here(turn, round, "this rank did not stage it");
  }
  Round& round = round_of(turn, id);
  round.requested = true;
  if (round.verdict == Verdict::kFailed) {  // elsewhere, before this rank came to it
    turn.act(Announce{id, Verdict::kFailed, -1, "it failed at another rank"});
    return nullptr;
  }
  return &round;
}

void accept_replica(Turn& turn, Round& round, std::size_t index) {
  SlotPair& pair = turn.s.held[index];
  const int slot = turn.rule().stage_beside_base ? slot_beside(pair, turn.s.base) : 0;
  pair[slot] = Slot{Slot::State::kWriting, round.id, turn.s.base};
  WardPart& ward = round.wards[index];
  ward.part = Part::kWriting;
  const int rank = turn.config().wards[index];
  turn.act(AcceptReplica{rank, slot, round.id, turn.s.base, ward.sizes});
  turn.reach(Point::kReplicaWriting, round.id);
  if (ward.image_digest) turn.act(ExpectDigest{rank, round.id, *ward.image_digest});
}

/// Called when a ward's slot is no longer being written: accepts an offer that waited for that.
void accept_waiting(Turn& turn, std::size_t index) {
  for (Round& round : turn.s.rounds) {
    if (round.wards[index].part == Part::kWaiting) return accept_replica(turn, round, index);
  }
}

/// The slot that is being written with image `id`; nullptr if there is none.
Slot* writing(SlotPair& pair, ImageId id) {
  for (Slot& slot : pair) {
    if (slot.state == Slot::State::kWriting && slot.id == id) return &slot;
  }
  return nullptr;
}

/// Ends the writing of a ward's replica and returns its round, with which the caller goes on;
/// nullptr if stale.
Round* end_replica(Turn& turn, int rank, ImageId id, bool sealed) {
  const int ward = ward_index(turn, rank);
  Round* round = turn.s.mode == Mode::kReady && ward >= 0 ? find_round(turn.s, id) : nullptr;
  if (round == nullptr || round->wards[ward].part != Part::kWriting) {
    turn.stale("no replica of that step is being written");
    return nullptr;
  }
  round->wards[ward].part = sealed ? Part::kSealed : Part::kFailed;
  if (Slot* slot = writing(turn.s.held[ward], id)) {
    slot->state = sealed ? Slot::State::kSealed : Slot::State::kFree;
  }
  if (sealed) turn.reach(Point::kReplicaSealed, id);
  return round;
}

/// Compares the bytes that a borrower's replicas borrow from this rank with this rank's own, once
/// both digests are known. If they differ the step fails, and the borrower gets a Differ.
void compare_lent(Turn& turn, Round& round, std::size_t index) {
  const auto& borrow = round.borrows[index];
  if (round.own != Part::kSealed || !borrow || borrow->bytes == 0 || !turn.rule().vote_needs_lent) {
    return;
  }
  if (index < round.lent.size() && round.lent[index] == borrow->digest) return;
  const int rank = turn.config().borrowers[index];
  turn.send(rank, Differ{round.id});
  fail_here(turn, round,
            "this rank has other bytes than rank " + std::to_string(rank) +
                " in tensors that are said to be the same on both");
}

/// Learns from an offer the outcome of the rounds before it: the base is complete, and all rounds
/// between base and offer have failed. The owner has passed those rounds knowing their outcome
/// (rule 3), and a step for which it did not vote can never be complete. False (and refused) if the
/// offer contradicts this rank's knowledge.
bool learn_from_offer(Turn& turn, const Offer& offer) {
  State& s = turn.s;
  if (offer.base > s.base) {
    const Round* round = find_round(s, offer.base);
    if (round == nullptr || !round->voted || round->verdict != Verdict::kOpen) {
      turn.malformed("an offer on " + to_string(offer.base) + ", for which this rank never voted");
      return false;
    }
    complete(turn, offer.base, turn.rule().orders_with_base ? offer.base_orders : Orders{});
  } else if (offer.base < s.base) {
    turn.malformed("an offer on " + to_string(offer.base) + ", though " + to_string(s.base) +
                   " is complete");
    return false;
  }
  for (Round& round : s.rounds) {
    if (round.id < offer.id) fail_here(turn, round, "another rank stages a newer step");
  }
  return true;
}

}  // namespace

Round* open_round(Turn& turn, ImageId id) {
  if (id.generation != turn.s.generation) {
    turn.malformed("a round of generation " + std::to_string(id.generation));
    return nullptr;
  }
  if (id <= turn.s.base) {
    turn.stale("an older step is complete");
    return nullptr;
  }
  Round& round = round_of(turn, id);
  if (round.verdict != Verdict::kOpen) {
    turn.stale("the step has failed");
    return nullptr;
  }
  if (!round.requested && turn.s.newest_requested > id) {
    fail_here(turn, round, "this rank did not stage it");
    return nullptr;
  }
  if (!round.requested && turn.s.wants_finish && turn.rule().finish_is_a_no) {
    fail_here(turn, round, "this rank called finish() and did not stage it");
    return nullptr;
  }
  return &round;
}

// --- this rank's own image ---

void on(Turn& turn, const StageRequested& event) {
  Round* round = request(turn, event.step, false);
  if (round == nullptr) return;
  State& s = turn.s;
  const int slot = turn.rule().stage_beside_base ? slot_beside(s.own, s.base) : 0;  // rule 2
  s.own[slot] = Slot{Slot::State::kWriting, round->id, s.base};
  round->own = Part::kWriting;
  turn.act(WriteOwn{slot, round->id, s.base, event.sizes});
  turn.reach(Point::kOwnWriting, round->id);
  const auto& holders = turn.config().holders[turn.config().rank];
  for (const int holder : holders) {
    turn.send(holder, Offer{round->id, s.base, event.sizes, s.base_orders});
  }
  if (!holders.empty()) turn.reach(Point::kOffered, round->id);
}

void on(Turn& turn, const StageSkipped& event) {
  Round* round = request(turn, event.step, true);
  if (round == nullptr) return;
  round->own = Part::kFailed;
  fail_here(turn, *round, event.why.empty() ? "this rank skipped it" : event.why);
}

void on(Turn& turn, const OwnSealed& event) {
  Round* round = turn.s.mode == Mode::kReady ? find_round(turn.s, event.id) : nullptr;
  if (round == nullptr || round->own != Part::kWriting) {
    return turn.stale("that step is not being staged");
  }
  round->own = Part::kSealed;
  if (Slot* slot = writing(turn.s.own, event.id)) slot->state = Slot::State::kSealed;
  turn.reach(Point::kOwnSealed, event.id);
  if (round->verdict == Verdict::kOpen) {
    for (const int holder : turn.config().holders[turn.config().rank]) {
      turn.send(holder, Sealed{event.id, event.image_digest});
    }
  }
  // Borrows are sent in failed rounds, too, so that one step finds all pairs of ranks whose bytes
  // differ, and the next step borrows from none of them.
  const auto& lenders = turn.config().lenders[turn.config().rank];
  for (std::size_t i = 0; i < lenders.size(); ++i) {
    Borrow borrow = i < event.borrowed.size() ? event.borrowed[i] : Borrow{};
    borrow.id = event.id;
    turn.send(lenders[i], borrow);
  }
  round->lent = event.lent;
  for (std::size_t i = 0; i < round->borrows.size(); ++i) compare_lent(turn, *round, i);
  try_vote(turn, *round);
}

void on(Turn& turn, const OwnFailed& event) {
  Round* round = turn.s.mode == Mode::kReady ? find_round(turn.s, event.id) : nullptr;
  if (round == nullptr || round->own != Part::kWriting) {
    return turn.stale("that step is not being staged");
  }
  round->own = Part::kFailed;
  if (Slot* slot = writing(turn.s.own, event.id)) slot->state = Slot::State::kFree;
  fail_here(turn, *round, event.why);
}

void on(Turn& turn, int from, const Accept& accept) {
  const auto& holders = turn.config().holders[turn.config().rank];
  if (std::find(holders.begin(), holders.end(), from) == holders.end()) {
    return turn.malformed("accept from rank " + std::to_string(from) + ", no holder of this rank");
  }
  const Round* round = find_round(turn.s, accept.id);
  if (round == nullptr || round->verdict != Verdict::kOpen ||
      (round->own != Part::kWriting && round->own != Part::kSealed)) {
    return turn.stale("nothing of that step is to be sent");
  }
  turn.act(SendImage{from, accept.id, accept.need_manifest, accept.held});
}

// --- the wards' replicas ---

void on(Turn& turn, int from, const Offer& offer) {
  const int ward = ward_index(turn, from);
  if (ward < 0) {
    return turn.malformed("offer from rank " + std::to_string(from) + ", no ward of this rank");
  }
  if (offer.base >= offer.id) return turn.malformed("an offer older than its base");
  if (offer.id.generation != turn.s.generation) {
    return turn.malformed("an offer of generation " + std::to_string(offer.id.generation));
  }
  if (offer.id <= turn.s.base) return turn.stale("an older step is complete");
  if (turn.rule().receiver_knows_outcome && !learn_from_offer(turn, offer)) return;
  Round* round = open_round(turn, offer.id);
  if (round == nullptr) return;
  WardPart& part = round->wards[ward];
  if (part.part != Part::kNone) return turn.malformed("the same offer twice");
  part.sizes = offer.sizes;
  part.part = Part::kWaiting;
  const bool busy = std::any_of(turn.s.rounds.begin(), turn.s.rounds.end(), [&](const Round& r) {
    return r.wards[ward].part == Part::kWriting;  // of a failed round, being aborted
  });
  if (!busy) accept_replica(turn, *round, static_cast<std::size_t>(ward));
}

void on(Turn& turn, int from, const Sealed& sealed) {
  const int ward = ward_index(turn, from);
  if (ward < 0) {
    return turn.malformed("sealed from rank " + std::to_string(from) + ", no ward of this rank");
  }
  Round* round = find_round(turn.s, sealed.id);
  if (round == nullptr || round->verdict != Verdict::kOpen) return turn.stale("the step is over");
  WardPart& part = round->wards[ward];
  if ((part.part != Part::kWriting && part.part != Part::kWaiting) || part.image_digest) {
    return turn.malformed("sealed without an offer, or twice");
  }
  part.image_digest = sealed.image_digest;
  if (part.part == Part::kWriting) turn.act(ExpectDigest{from, sealed.id, sealed.image_digest});
}

void on(Turn& turn, const ReplicaReady& event) {
  const int ward = ward_index(turn, event.ward);
  const Round* round =
      turn.s.mode == Mode::kReady && ward >= 0 ? find_round(turn.s, event.id) : nullptr;
  if (round == nullptr || round->verdict != Verdict::kOpen ||
      round->wards[ward].part != Part::kWriting) {
    return turn.stale("no replica of that step is awaited");
  }
  turn.send(event.ward, Accept{event.id, event.need_manifest, event.held});
}

void on(Turn& turn, const ReplicaSealed& event) {
  Round* round = end_replica(turn, event.ward, event.id, true);
  if (round == nullptr) return;
  try_vote(turn, *round);
  accept_waiting(turn, static_cast<std::size_t>(ward_index(turn, event.ward)));
}

void on(Turn& turn, const ReplicaFailed& event) {
  Round* round = end_replica(turn, event.ward, event.id, false);
  if (round == nullptr) return;
  fail_here(turn, *round, event.why);
  accept_waiting(turn, static_cast<std::size_t>(ward_index(turn, event.ward)));
}

// --- what replicas borrow ---

void on(Turn& turn, int from, const Borrow& borrow) {
  const int index = borrower_index(turn, from);
  if (index < 0) {
    return turn.malformed("borrow from rank " + std::to_string(from) +
                          ", which is no borrower of this rank");
  }
  Round* round = find_round(turn.s, borrow.id);
  if (round == nullptr || round->verdict == Verdict::kOpen) round = open_round(turn, borrow.id);
  if (round == nullptr) return;
  auto& known = round->borrows[static_cast<std::size_t>(index)];
  if (known) return turn.malformed("the same borrow twice");
  known = borrow;
  compare_lent(turn, *round, static_cast<std::size_t>(index));
  try_vote(turn, *round);
}

void on(Turn& turn, int from, const Differ& differ) {
  const auto& lenders = turn.config().lenders[turn.config().rank];
  if (std::find(lenders.begin(), lenders.end(), from) == lenders.end()) {
    return turn.malformed("differ from rank " + std::to_string(from) +
                          ", which is no lender of this rank");
  }
  turn.act(StopBorrowing{from, differ.id});
}

// --- the agreement ---

void on(Turn& turn, int from, const Yes& yes) {
  const int child = child_index(turn, from);
  if (child < 0) return turn.malformed("yes from rank " + std::to_string(from) + ", no child");
  Round* round = open_round(turn, yes.id);
  if (round == nullptr) return;
  round->below_yes = static_cast<std::uint8_t>(round->below_yes | 1U << child);
  round->below = both(round->below, yes.wishes);
  try_vote(turn, *round);
}

void on(Turn& turn, int from, const Complete& message) {
  if (from != turn.config().parent) return turn.malformed("complete, but not from the parent");
  if (message.id <= turn.s.base) return turn.stale("known already");
  const Round* round = find_round(turn.s, message.id);
  if (round == nullptr || round->verdict != Verdict::kOpen ||
      (!round->voted && turn.rule().all_must_vote)) {
    return turn.malformed("complete " + to_string(message.id) +
                          ", for which this rank never voted");
  }
  complete(turn, message.id, message.orders);
}

void on(Turn& turn, int from, const Failed& failed) {
  if (child_index(turn, from) < 0 && from != turn.config().parent) {
    return turn.malformed("failed from rank " + std::to_string(from) + ", no neighbour");
  }
  if (failed.id.generation != turn.s.generation) {
    return turn.malformed("a round of generation " + std::to_string(failed.id.generation));
  }
  if (failed.id <= turn.s.base) return turn.stale("an older step is complete");
  fail(turn, round_of(turn, failed.id), failed.rank, failed.why, from);
}

void fail_unrequested(Turn& turn, const std::string& why) {
  for (Round& round : turn.s.rounds) {
    if (!round.requested) fail_here(turn, round, why);
  }
}

void answer_round(Turn& turn, const StoreAnswered& event) {
  Round* const round = find_round(turn.s, event.id);
  if (round == nullptr || !round->reported || round->verdict != Verdict::kOpen) {
    return turn.stale("no step waits for the Store");
  }
  // No clock makes a step safe: without the Store's answer the step fails, and training goes on.
  if (event.found == StoreAnswered::Found::kNothing) return fail_here(turn, *round, event.why);
  if (!turn.s.noted) turn.reach(Point::kFirstNoted, event.id);
  turn.s.noted = true;
  decide(turn, *round);
}

}  // namespace meshstage::protocol
