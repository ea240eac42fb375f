#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "transition_impl.hpp"

/// Rule 5, over the tree. Every rank verifies its slots: Have climbs. For files newer than the step
/// that slots cover, and for stray vaults, AskDisk comes down, and Have climbs; again, if claims
/// were left out that matter. The root chooses: Choice comes down. Pairs of ranks that the choice
/// needs and that are not linked connect. Every rank fetches, serves and compares its structure:
/// Ready climbs. Established comes down; only then is a trainer touched or a step staged. A rank
/// that cannot go on sends GiveUp to every peer, and each peer does the same.
namespace meshstage::protocol {

using Phase = Recovery::Phase;

void enter(Recovery& recovery, Phase phase) {
  recovery.phase = phase;
  recovery.mine = false;
  recovery.below = 0;
}

bool recovering(const Turn& turn, Phase phase) {
  return turn.s.mode == Mode::kRecovering && turn.s.recovery.phase == phase;
}

void add_text(std::string& to, const std::string& text) {
  // More would help no reader, and might make a message too long.
  constexpr std::size_t kMost = 2000;
  if (text.empty() || to.size() >= kMost) return;
  to += (to.empty() ? "" : "; ") + text;
  if (to.size() > kMost) to.resize(kMost);
}

namespace {

/// The slot of a claim to this rank's own memory; nullptr if this rank has no such slot.
Slot* slot_of(Turn& turn, const Claim& claim) {
  if (claim.at != turn.config().rank || claim.slot < 0 || claim.slot > 1) return nullptr;
  if (claim.place == Place::kOwnSlot) {
    return claim.owner == turn.config().rank ? &turn.s.own[claim.slot] : nullptr;
  }
  const int ward = ward_index(turn, claim.owner);
  if (claim.place != Place::kHeldSlot || ward < 0) return nullptr;
  return &turn.s.held[ward][claim.slot];
}

/// Whether a slot of a stray vault that this rank took has the bytes that its own slot needs. Of an
/// image from which others borrow the own copy stays until all agree, because replicas are made
/// whole from own images alone.
bool may_move(const Turn& turn, const Claim& source) {
  const int rank = turn.config().rank;
  if (source.place != Place::kStray || source.at != rank) return false;
  if (source.owner != source.vault && source.owner != rank) return true;  // it stays a replica
  if (source.sizes.borrowed_bytes != 0) return false;
  return source.owner == rank || source.lent.empty() || !turn.rule().lent_stays_own;
}

void begin_fetch(Turn& turn, const Claim& source) {
  const bool own = source.owner == turn.config().rank;
  SlotPair& pair = own ? turn.s.own : turn.s.held[ward_index(turn, source.owner)];
  const ImageId keep = turn.rule().fetch_beside_base ? source.base : kNoImage;  // rule 5c
  const int slot = slot_beside(pair, keep);
  pair[slot] = Slot{Slot::State::kWriting, source.id, source.base};
  ++turn.s.recovery.fetching;
  if (own) turn.s.recovery.own_slot = slot;
  turn.act(Fetch{source, slot, keep, may_move(turn, source)});
  turn.reach(Point::kFetchStarted, source.id);
}

/// If this rank and all ranks below it can restore, sends Ready to the parent; the root asks the
/// Store.
void tally_ready(Turn& turn) {
  Recovery& recovery = turn.s.recovery;
  if (recovery.phase != Phase::kFetch) return;
  if (recovery.connecting || recovery.fetching != 0 || !recovery.structure_ok) return;
  if (!turn.rule().agree_first) return become_ready(turn);
  if (recovery.below != turn.everyone_below()) return;
  const ImageId id = recovery.choice.id;
  turn.reach(Point::kReadyToRestore, id);
  if (!turn.root()) {
    recovery.phase = Phase::kWaiting;
    return turn.send(turn.config().parent, Ready{recovery.mismatch});
  }
  if (recovery.mismatch) return cut_anew(turn);
  ask_to_establish(turn);
}

/// Of several mismatches all ranks get that of the lowest rank.
void add_mismatch(Recovery& recovery, const std::optional<Failure>& mismatch) {
  if (!mismatch || (recovery.mismatch && recovery.mismatch->rank <= mismatch->rank)) return;
  recovery.mismatch = mismatch;
}

/// The ranks that this one exchanges images with by that choice, and is not linked to.
std::vector<int> bridges_for(const Turn& turn, const Choice& choice) {
  const int rank = turn.config().rank;
  const auto& linked = turn.config().data_peers;
  std::set<int> bridges;
  for (const Transfer& transfer : choice.transfers) {
    const int at = transfer.source.at;
    if (at == transfer.to || (at != rank && transfer.to != rank)) continue;
    const int other = at == rank ? transfer.to : at;
    if (!std::binary_search(linked.begin(), linked.end(), other)) bridges.insert(other);
  }
  return {bridges.begin(), bridges.end()};
}

/// Fetches and serves what the choice says.
void begin_transfers(Turn& turn, const Choice& choice) {
  const int rank = turn.config().rank;
  const int verified = turn.s.recovery.own_slot;
  const bool comes = std::any_of(choice.transfers.begin(), choice.transfers.end(),
                                 [rank](const Transfer& transfer) {
                                   return transfer.to == rank && transfer.source.owner == rank &&
                                          !transfer.source.needs_lenders();
                                 });
  for (const Transfer& transfer : choice.transfers) {
    const Claim& source = transfer.source;
    if (transfer.to == rank) {
      begin_fetch(turn, source);
    } else if (source.at == rank) {
      turn.act(Serve{source, transfer.to});
    }
    const auto& by = source.borrowed;
    if (transfer.to != source.owner || !source.needs_lenders() ||
        std::none_of(by.begin(), by.end(), [&](const Loan& loan) { return loan.rank == rank; })) {
      continue;
    }
    if (verified < 0 && comes) {
      turn.s.recovery.lend_later.push_back(transfer.to);
      continue;
    }
    if (verified < 0) {
      return give_up(turn,
                     Failure{ErrorKind::kInvalidState,
                             rank,
                             {},
                             {},
                             "rank " + std::to_string(rank) + " is to lend to the image of rank " +
                                 std::to_string(transfer.to) + ", " + to_string(choice.id) +
                                 ", and has no own image of that step"},
                     -1);
    }
    turn.act(ServeLent{choice.id, verified, transfer.to});
  }
}

/// Sends the claims of this rank and of all ranks below it to the parent, once all are there.
void tally_claims(Turn& turn) {
  Recovery& recovery = turn.s.recovery;
  if (!recovery.mine || recovery.below != turn.everyone_below()) return;
  if (turn.root()) return choose_at_root(turn);
  const bool disk = recovery.phase == Phase::kFiles;
  recovery.beyond =
      std::max(recovery.beyond, leave_out_oldest(recovery.claims, turn.config().most_claim_bytes));
  turn.send(turn.config().parent, Have{disk, std::exchange(recovery.claims, {}), recovery.evidence,
                                       std::exchange(recovery.damage, {}), recovery.beyond});
  if (disk) enter(recovery, Phase::kChoice);
}

void take_claims(Turn& turn, const std::vector<Claim>& claims, ImageId evidence,
                 const std::string& damage) {
  Recovery& recovery = turn.s.recovery;
  add_text(recovery.damage, damage);
  recovery.claims.insert(recovery.claims.end(), claims.begin(), claims.end());
  recovery.evidence = std::max(recovery.evidence, evidence);
  tally_claims(turn);
}

}  // namespace

void give_up(Turn& turn, const Failure& failure, int heard_from) {
  for (const int peer : turn.config().peers) {
    if (peer != heard_from) turn.send(peer, GiveUp{failure});
  }
  const Recovery& recovery = turn.s.recovery;
  const auto& peers = turn.config().peers;
  for (const int peer : recovery.bridges) {
    if (peer == heard_from || recovery.connecting) continue;
    if (!std::binary_search(peers.begin(), peers.end(), peer)) turn.send(peer, GiveUp{failure});
  }
  turn.act(AbortTransfers{});
  turn.act(RecoverFailed{failure});
  turn.s.mode = Mode::kBroken;
  forget_generation(turn.s);
}

void ask_disk(Turn& turn, const AskDisk& ask) {
  turn.send_down(ask);
  enter(turn.s.recovery, Phase::kFiles);
  if (ask.up_to.exists()) turn.s.recovery.beyond = kNoImage;
  turn.act(VerifyDisk{ask.newer_than, turn.rule().found_anywhere, ask.up_to});
}

void learn_choice(Turn& turn, const Choice& choice) {
  turn.send_down(choice);
  turn.reach(Point::kChoiceLearned, choice.id);
  State& s = turn.s;
  enter(s.recovery, Phase::kFetch);
  s.recovery.choice.id = choice.id;
  s.recovery.choice.base = choice.base;
  if (!choice.id.exists()) {
    s.recovery.structure_ok = true;
    return tally_ready(turn);
  }
  for (int slot = 0; slot < 2; ++slot) {
    if (s.own[slot].state == Slot::State::kSealed &&
        same_image(s.own[slot].id, choice.id, turn.rule().generations_apart)) {
      s.recovery.own_slot = slot;
      turn.act(CheckStructure{slot});
      break;
    }
  }
  s.recovery.bridges = bridges_for(turn, choice);
  if (s.recovery.bridges.empty()) return begin_transfers(turn, choice);
  s.recovery.connecting = true;
  s.recovery.choice.transfers = choice.transfers;
  turn.act(Connect{s.recovery.bridges});
}

void ask_to_establish(Turn& turn) {
  const ImageId id = turn.s.recovery.choice.id;
  if (!id.exists() && !turn.rule().look) {
    turn.reach(Point::kEstablished, id);
    return become_ready(turn);
  }
  // The established step counts as complete from here, so the Store must have the note of a
  // complete step.
  turn.s.recovery.phase = Phase::kAsking;
  turn.act(AskStore{id, id.exists()});
}

void start_recovery(Turn& turn) {
  enter(turn.s.recovery, Phase::kSlots);
  turn.act(VerifySlots{turn.rule().verify_claims});
}

void on(Turn& turn, const SlotsVerified& event) {
  if (!recovering(turn, Phase::kSlots) || turn.s.recovery.mine) {
    return turn.stale("nobody asked for slots");
  }
  turn.s.recovery.mine = true;
  for (const Claim& claim : event.claims) {
    if (Slot* slot = slot_of(turn, claim)) *slot = {Slot::State::kSealed, claim.id, claim.base};
  }
  turn.reach(Point::kClaimed, kNoImage);
  take_claims(turn, event.claims, event.evidence, event.damage);
}

void on(Turn& turn, const FilesVerified& event) {
  if (!recovering(turn, Phase::kFiles) || turn.s.recovery.mine) {
    return turn.stale("nobody asked for files");
  }
  turn.s.recovery.mine = true;
  if (turn.root() && turn.config().any_world && !turn.s.recovery.up_to.exists()) {
    turn.s.recovery.named = event.named;
    turn.s.recovery.room = event.room;
  }
  take_claims(turn, event.claims, event.evidence, event.damage);
}

void on(Turn& turn, int from, const Have& have) {
  const int child = child_index(turn, from);
  if (child < 0) return turn.malformed("have from rank " + std::to_string(from) + ", no child");
  Recovery& recovery = turn.s.recovery;
  if (!recovering(turn, have.disk ? Phase::kFiles : Phase::kSlots) ||
      (recovery.below >> child & 1U) != 0) {
    return turn.malformed("have from rank " + std::to_string(from) + " out of turn");
  }
  recovery.below = static_cast<std::uint8_t>(recovery.below | 1U << child);
  recovery.beyond = std::max(recovery.beyond, have.beyond);
  take_claims(turn, have.claims, have.evidence, have.damage);
}

void on(Turn& turn, int from, const AskDisk& ask) {
  const bool slots_told = recovering(turn, Phase::kSlots) && turn.s.recovery.mine &&
                          turn.s.recovery.below == turn.everyone_below();
  const bool all_told = recovering(turn, Phase::kChoice);
  if (from != turn.config().parent || !(ask.up_to.exists() ? all_told : slots_told)) {
    return turn.malformed("ask-disk out of turn");
  }
  ask_disk(turn, ask);
}

void on(Turn& turn, int from, const Choice& choice) {
  if (from != turn.config().parent || !recovering(turn, Phase::kChoice)) {
    return turn.malformed("choice out of turn");
  }
  for (const Transfer& transfer : choice.transfers) {
    const int owner = transfer.source.owner;
    if (transfer.source.id != choice.id && turn.rule().generations_apart) {
      return turn.malformed("a choice that mixes " + to_string(transfer.source.id) + " into " +
                            to_string(choice.id));
    }
    if (!keeps(turn, transfer.to, owner)) {
      return turn.malformed("a choice that sends an image of rank " + std::to_string(owner) +
                            " to rank " + std::to_string(transfer.to) +
                            ", which is no holder of it");
    }
    const int other = transfer.to == owner ? stranger(turn, transfer.source) : -1;
    if (other >= 0) {
      return turn.malformed("a choice that has rank " + std::to_string(other) +
                            " lend to a replica of rank " + std::to_string(owner) +
                            ", which borrows nothing from it");
    }
  }
  learn_choice(turn, choice);
}

void on(Turn& turn, const Connected&) {
  Recovery& recovery = turn.s.recovery;
  if (!recovering(turn, Phase::kFetch) || !recovery.connecting) {
    return turn.stale("nothing is to be connected");
  }
  recovery.connecting = false;
  Choice choice = recovery.choice;
  choice.transfers = std::exchange(recovery.choice.transfers, {});
  begin_transfers(turn, choice);
  tally_ready(turn);
}

void on(Turn& turn, const Fetched& event) {
  const bool own = event.owner == turn.config().rank;
  const int ward = own ? -1 : ward_index(turn, event.owner);
  if (!recovering(turn, Phase::kFetch) || (!own && ward < 0))
    return turn.stale("nothing is fetched");
  SlotPair& pair = own ? turn.s.own : turn.s.held[ward];
  for (int slot = 0; slot < 2; ++slot) {
    if (pair[slot].state != Slot::State::kWriting) continue;
    pair[slot].state = Slot::State::kSealed;
    --turn.s.recovery.fetching;
    turn.reach(Point::kFetched, pair[slot].id);
    if (own) {
      turn.act(CheckStructure{slot});
      for (const int to : std::exchange(turn.s.recovery.lend_later, {})) {
        turn.act(ServeLent{turn.s.recovery.choice.id, slot, to});
      }
    }
    return tally_ready(turn);
  }
  turn.stale("nothing is fetched of that rank");
}

void on(Turn& turn, const FetchFailed& event) {
  if (!recovering(turn, Phase::kFetch) && !recovering(turn, Phase::kWaiting)) {
    return turn.stale("nothing is fetched");
  }
  give_up(turn, Failure{event.kind, turn.config().rank, {}, {}, event.why}, -1);
}

void on(Turn& turn, const StructureChecked& event) {
  if (!recovering(turn, Phase::kFetch) || turn.s.recovery.structure_ok) {
    return turn.stale("no structure is compared");
  }
  if (!event.mismatch.empty() && turn.rule().structure_first) {
    const Failure failure{
        ErrorKind::kStructureMismatch, turn.config().rank, {}, event.path, event.mismatch};
    if (!turn.config().any_world) return give_up(turn, failure, -1);
    add_mismatch(turn.s.recovery, failure);  // the root learns of it once all have compared
  }
  turn.s.recovery.structure_ok = true;
  tally_ready(turn);
}

void on(Turn& turn, int from, const Ready& ready) {
  const int child = child_index(turn, from);
  if (child < 0 || !recovering(turn, Phase::kFetch)) return turn.malformed("ready out of turn");
  if (ready.mismatch && !turn.config().any_world) {
    return turn.malformed("ready with a structure that differs");
  }
  add_mismatch(turn.s.recovery, ready.mismatch);
  turn.s.recovery.below = static_cast<std::uint8_t>(turn.s.recovery.below | 1U << child);
  tally_ready(turn);
}

void on(Turn& turn, int from, const Established& established) {
  if (turn.s.mode == Mode::kReady) return turn.stale("learned already from an offer or a vote");
  if (from != turn.config().parent || !recovering(turn, Phase::kWaiting) ||
      established.id != turn.s.recovery.choice.id) {
    return turn.malformed("established out of turn");
  }
  become_ready(turn);
}

void on(Turn& turn, int from, const GiveUp& message) {
  const auto& peers = turn.config().peers;
  const auto& bridges = turn.s.recovery.bridges;
  if (!std::binary_search(peers.begin(), peers.end(), from) &&
      !std::binary_search(bridges.begin(), bridges.end(), from)) {
    return turn.malformed("give-up from rank " + std::to_string(from) + ", no peer of this rank");
  }
  if (turn.s.mode != Mode::kRecovering) return turn.malformed("give-up after the agreement");
  give_up(turn, message.failure, from);
}

void become_ready(Turn& turn) {
  State& s = turn.s;
  const ImageId id = s.recovery.choice.id;
  const int slot = s.recovery.own_slot;
  const OldStep old = s.recovery.old;
  const bool anew = is_cut_anew(turn);
  const auto mismatch = s.recovery.mismatch.value_or(Failure{});
  turn.send_down(Established{id});
  if (!s.recovery.bridges.empty()) turn.act(Disconnect{});
  s.base = id;
  s.mode = Mode::kReady;
  s.recovery = {};
  turn.reach(Point::kRestoring, id);
  if (anew) {
    turn.act(Reassemble{{id, turn.config().world_size}, mismatch});
  } else if (id.exists()) {
    turn.act(RestoreTrainer{slot, id});
  } else {
    turn.act(RecoveredNothing{old});
  }
}

}  // namespace meshstage::protocol
