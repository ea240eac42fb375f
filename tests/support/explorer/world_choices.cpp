#include <algorithm>

#include "tests/support/explorer/world.hpp"
#include "tests/support/explorer/world_impl.hpp"

namespace meshstage::explorer {

// --- choices ---

MemorySlot* World::stray_slot(const Claim& claim) {
  const Node& at = nodes_[static_cast<std::size_t>(claim.at)];
  const Node& vault = nodes_[static_cast<std::size_t>(claim.vault)];
  const auto slot = static_cast<std::size_t>(claim.slot);
  for (Stray& stray : strays_) {
    if (stray.host != at.host || stray.rank != claim.vault) continue;
    return claim.owner == claim.vault ? &stray.own[slot]
                                      : &stray.held[ward_of(vault, claim.owner)][slot];
  }
  return nullptr;
}

/// Where the bytes of a fetch lie; nullptr if that is a file.
const MemorySlot* World::source_of(const Job& job) const {
  const Claim& source = job.source;
  if (is_file(source.place)) return nullptr;
  const Node& at = nodes_[static_cast<std::size_t>(source.at)];
  const auto slot = static_cast<std::size_t>(source.slot);
  if (source.place == Place::kStray) {
    static const MemorySlot kGone;
    const MemorySlot* there = const_cast<World*>(this)->stray_slot(source);
    if (there != nullptr && there->id == source.id) return there;
    const auto& wards = at.state.config->wards;
    if (source.owner != at.rank && !std::binary_search(wards.begin(), wards.end(), source.owner)) {
      return &kGone;
    }
    // It has become a slot of the rank that took it, perhaps.
    for (const MemorySlot& now :
         source.owner == at.rank ? at.own : at.held[ward_of(at, source.owner)]) {
      if (now.header == MemorySlot::Header::kSealed && now.id == source.id) return &now;
    }
    return &kGone;
  }
  return source.owner == at.rank ? &at.own[slot] : &at.held[ward_of(at, source.owner)][slot];
}

bool World::fetch_broken(const Node& node, const Job& job) const {
  const MemorySlot* slot = source_of(job);
  if (!job.sending || slot == nullptr) return false;
  const bool good = slot->header == MemorySlot::Header::kSealed && slot->id == job.source.id &&
                    (slot->whole || !bounds_->rules.verify_claims);
  if (!good) return true;
  if (job.owner != node.rank) return false;
  for (int rank = 0; rank < bounds_->world; ++rank) {
    if ((job.lent & bit(rank)) == 0) continue;
    const MemorySlot* by = own_image(rank, job.id);
    if (by == nullptr || by->loan != job.loan) return true;
  }
  return false;
}

bool World::can_connect(const Node& node) const {
  const auto& peers = node.state.recovery.bridges;
  return std::all_of(peers.begin(), peers.end(), [&](int peer) {
    const Node* other = const_cast<World*>(this)->live_node(peer, node.state.generation);
    if (other == nullptr || other->state.generation != node.state.generation) return false;
    const auto& theirs = other->state.recovery.bridges;
    return active(*other) && std::binary_search(theirs.begin(), theirs.end(), node.rank);
  });
}

bool World::can_finish(const Node& node, const Job& job) const {
  if (job.aborted) return false;
  if (job.kind == Job::Kind::kReplica) return job.digest_known && job.sending;
  if (job.kind != Job::Kind::kFetch) return true;
  const bool replica = job.owner == node.rank && job.source.is_replica();
  if (replica && (job.lenders & ~job.lent) != 0) return false;
  return job.sending && !fetch_broken(node, job);
}

void World::processes_choices(const Node& node, std::vector<Choice>& out) const {
  const int me = static_cast<int>(&node - nodes_.data());
  for (const Job& job : node.jobs) {
    const bool good = can_finish(node, job);
    const bool may_fail = job.aborted || left_.local_failures > 0;
    switch (job.kind) {
      case Job::Kind::kOwn:
        out.push_back({Kind::kOwnSealed, me});
        if (left_.differences > 0 && (job.lenders != 0 || !node.state.config->borrowers.empty())) {
          out.push_back({Kind::kOwnDiffers, me});
        }
        if (may_fail) out.push_back({Kind::kOwnFailed, me});
        break;
      case Job::Kind::kReplica:
        if (good) out.push_back({Kind::kReplicaSealed, me, job.owner, job.generation});
        if (may_fail && job.generation == node.state.generation) {
          out.push_back({Kind::kReplicaFailed, me, job.owner, job.generation});
        }
        break;
      case Job::Kind::kFetch:
        if (good) out.push_back({Kind::kFetched, me, job.owner, job.generation});
        if ((left_.local_failures > 0 || fetch_broken(node, job)) &&
            job.generation == node.state.generation) {
          out.push_back({Kind::kFetchFailed, me, job.owner, job.generation});
        }
        break;
      case Job::Kind::kAsk:
        out.push_back({Kind::kAnswered, me});
        if (left_.unanswered > 0) out.push_back({Kind::kUnanswered, me});
        break;
      case Job::Kind::kConnect:
        if (can_connect(node)) out.push_back({Kind::kConnected, me});
        break;
      case Job::Kind::kCompare:
        if (node.hung) break;
        out.push_back({Kind::kCompared, me});
        if (left_.mismatches > 0) out.push_back({Kind::kMismatch, me});
        break;
      case Job::Kind::kRead:
        out.push_back({node.disk == Node::Disk::kSlow ? Kind::kRead : Kind::kReadStuck, me});
        break;
    }
  }
  if (!node.alive) return;
  if (node.pending && !node.zombie) out.push_back({Kind::kFormed, me});
  if (!active(node)) return;
  if (someone_gone(node) || link_dead(node)) out.push_back({Kind::kBroken, me});
  if (left_.waits > 0 && waits(node)) out.push_back({Kind::kWaited, me});
  if (node.state.mode != Mode::kReady || node.hung) return;
  if (node.next_step <= bounds_->steps && !node.state.wants_finish) {
    const auto step = static_cast<std::uint64_t>(node.next_step);
    if (would_accept(node, StageRequested{step, {}})) {
      out.push_back({Kind::kStage, me});
    } else if (left_.skips > 0 && would_accept(node, StageSkipped{step})) {
      out.push_back({Kind::kSkip, me});
    }
    if (left_.ends > 0 && !node.zombie && !node.state.wishes.end) out.push_back({Kind::kWish, me});
    if (left_.early_ends > 0 && would_accept(node, FinishRequested{})) {
      out.push_back({Kind::kFinish, me});
    }
  } else if (bounds_->finish && would_accept(node, FinishRequested{})) {
    out.push_back({Kind::kFinish, me});
  }
  if (bounds_->disk && !node.zombie && node.state.base.exists()) {
    const ImageId id = node.state.base;
    bool can = false;
    for (const MemorySlot& slot : node.own) {  // verified once more: a file may be the only copy
      can = can || (slot.header == MemorySlot::Header::kSealed && slot.id == id && slot.whole);
    }
    for (const File& file : node.files) can = can && (file.owner != node.rank || file.id < id);
    if (can) out.push_back({Kind::kPersist, me});
  }
}

void World::fault_choices(const Node& node, std::vector<Choice>& out) const {
  const int me = static_cast<int>(&node - nodes_.data());
  if (node.zombie || store_generation_ == 0) return;
  if (node.alive && node.state.mode != Mode::kFinished) {
    if (left_.crashes > 0) out.push_back({Kind::kCrash, me});
    if (left_.hangs > 0 && active(node) && !node.hung) out.push_back({Kind::kHang, me});
    const bool may_read = node.pending || (active(node) && node.state.mode == Mode::kRecovering);
    if (may_read && node.disk == Node::Disk::kFast) {
      if (left_.slow_disks > 0) out.push_back({Kind::kSlowDisk, me});
      if (left_.stuck_disks > 0) out.push_back({Kind::kStuckDisk, me});
    }
    if (left_.timeouts > 0 && active(node) && !someone_gone(node)) {
      out.push_back({Kind::kTimeout, me});
    }
    const bool redundant = !degraded_;
    if ((left_.host_losses > 0 && redundant) || left_.losses_beyond > 0) {
      out.push_back({Kind::kHostLost, me});
    }
    if (left_.zombies > 0 && redundant && active(node)) out.push_back({Kind::kZombie, me});
  }
  if (left_.reseats > 0 && me == 0 && host_count() > 1) {
    for (int shift = 1; shift < host_count(); ++shift) out.push_back({Kind::kReseat, shift});
    for (int rank = 0; rank < bounds_->world && bounds_->world > 2; ++rank) {
      const int next = (rank + 1) % bounds_->world;
      if (nodes_[static_cast<std::size_t>(rank)].host !=
          nodes_[static_cast<std::size_t>(next)].host)
        out.push_back({Kind::kSwap, rank});
    }
  }
  if (left_.flips > 0 && !degraded_) {
    for (int i = 0; i < static_cast<int>(slot_count(node)); ++i) {
      const MemorySlot& slot = slot_at(node, i);
      if (slot.header == MemorySlot::Header::kSealed && slot.whole) {
        out.push_back({Kind::kFlip, me, i});
      }
    }
  }
}

std::vector<Choice> World::choices() const {
  std::vector<Choice> out;
  if (finished_ || !violation_.empty()) return out;
  for (std::size_t i = 0; i < letters_.size(); ++i) {
    const Letter& letter = *letters_[i];
    const std::uint64_t generation = letter.message.generation;
    const Node* to = const_cast<World*>(this)->live_node(letter.to, generation);
    if (to == nullptr || !active(*to) || to->state.generation < generation) continue;
    bool first = true;
    for (std::size_t j = 0; j < i && first; ++j) {
      first = letters_[j]->from != letter.from || letters_[j]->to != letter.to ||
              letters_[j]->message.generation != generation;
    }
    if (!first) continue;
    out.push_back({Kind::kDeliver, letter.from, letter.to, generation});
    if (left_.lost_messages > 0) {
      out.push_back({Kind::kLost, letter.from, letter.to, generation});
    }
  }
  for (const Node& node : nodes_) processes_choices(node, out);
  if (may_form()) out.push_back({Kind::kForm});
  // Where nothing else can happen, time passes: as often as hangs can have come in between.
  const auto most = static_cast<std::uint32_t>(bounds_->waits + bounds_->hangs);
  for (std::size_t i = 0; i < nodes_.size() && out.empty(); ++i) {
    if (nodes_[i].waited < most && waits(nodes_[i])) {
      out.push_back({Kind::kWaited, static_cast<int>(i), 1});
    }
  }
  for (const Node& node : nodes_) fault_choices(node, out);
  return out;
}

std::string World::stuck() const {
  if (finished_) return {};
  for (int rank = 0; rank < bounds_->world; ++rank) {
    const Node& node = nodes_[static_cast<std::size_t>(rank)];
    if (node.hung && active(node)) continue;  // nobody waits for it, or another rank shows it
    const std::string who = "rank " + std::to_string(rank) + " waits for ever: ";
    if (!node.alive || node.state.mode != Mode::kReady) return who + "it is not recovered";
    if (node.next_step <= bounds_->steps) return who + "it cannot stage";
    for (const Round& round : node.state.rounds) {
      if (round.requested && round.verdict == Verdict::kOpen)
        return who + name(round.id) + " is open";
    }
    if (!node.jobs.empty()) return who + "its driver has work that cannot end";
    if (bounds_->finish) return who + "finish() does not return";
  }
  return {};
}

// --- words ---

bool is_fault(const Choice& choice) {
  switch (choice.kind) {
    case Choice::Kind::kLost:
    case Choice::Kind::kTimeout:
    case Choice::Kind::kSlowDisk:
    case Choice::Kind::kStuckDisk:
    case Choice::Kind::kHang:
    case Choice::Kind::kCrash:
    case Choice::Kind::kHostLost:
    case Choice::Kind::kFlip:
    case Choice::Kind::kZombie:
    case Choice::Kind::kReseat:
    case Choice::Kind::kSwap:
    case Choice::Kind::kMismatch:
    case Choice::Kind::kOwnDiffers:
    case Choice::Kind::kUnanswered:
      return true;
    default:
      return false;
  }
}

std::string to_string(const Choice& choice) {
  const std::string a = "rank " + std::to_string(choice.a);
  const std::string b = "rank " + std::to_string(choice.b);
  const std::string in_generation = " (generation " + std::to_string(choice.c) + ")";
  switch (choice.kind) {
    case Choice::Kind::kForm:
      return "all meet and form a generation";
    case Choice::Kind::kFormed:
      return a + " joins it";
    case Choice::Kind::kDeliver:
      return b + " hears " + a + in_generation;
    case Choice::Kind::kStage:
      return a + " stages its next step";
    case Choice::Kind::kSkip:
      return a + " skips its next step";
    case Choice::Kind::kOwnSealed:
      return a + " seals its own image";
    case Choice::Kind::kReplicaSealed:
      return a + " seals the replica of " + b + in_generation;
    case Choice::Kind::kFetched:
      return a + " seals the fetched image of " + b + in_generation;
    case Choice::Kind::kAnswered:
      return a + " has the Store's answer";
    case Choice::Kind::kUnanswered:
      return a + " gets NO ANSWER from the Store";
    case Choice::Kind::kConnected:
      return a + " is connected to all that it exchanges images with";
    case Choice::Kind::kReseat:
      return "all processes END; each rank comes back " + std::to_string(choice.a) +
             " hosts further on";
    case Choice::Kind::kSwap:
      return "all processes END; " + a + " and the next rank come back on each other's host";
    case Choice::Kind::kCompared:
      return a + " finds its structure equal";
    case Choice::Kind::kRead:
      return a + "'s slow disk has given what it reads";
    case Choice::Kind::kReadStuck:
      return a + " has read nothing for a deadline";
    case Choice::Kind::kPersist:
      return a + " writes its newest complete step to disk";
    case Choice::Kind::kWish:
      return a + " wishes the job to end";
    case Choice::Kind::kFinish:
      return a + " calls finish()";
    case Choice::Kind::kWaited:
      return a + (choice.b == 0 ? " has waited a deadline, though others are still busy"
                                : " has waited a deadline");
    case Choice::Kind::kBroken:
      return a + " notices that somebody is gone";
    case Choice::Kind::kOwnDiffers:
      return a + " seals its own image, which DIFFERS in what it borrows or lends";
    case Choice::Kind::kOwnFailed:
      return a + " FAILS to stage";
    case Choice::Kind::kReplicaFailed:
      return a + " FAILS to hold the replica of " + b + in_generation;
    case Choice::Kind::kFetchFailed:
      return a + " FAILS to fetch the image of " + b + in_generation;
    case Choice::Kind::kMismatch:
      return a + " comes with ANOTHER STRUCTURE";
    case Choice::Kind::kLost:
      return "a message from " + a + " to " + b + " IS LOST, with all behind it" + in_generation;
    case Choice::Kind::kTimeout:
      return a + " TIMES OUT";
    case Choice::Kind::kSlowDisk:
      return a + " gets a SLOW DISK";
    case Choice::Kind::kStuckDisk:
      return a + "'s disk HANGS";
    case Choice::Kind::kHang:
      return a + " HANGS: its trainer calls nothing any more";
    case Choice::Kind::kCrash:
      return a + " CRASHES";
    case Choice::Kind::kHostLost:
      return a + " LOSES ITS HOST";
    case Choice::Kind::kFlip:
      return "at " + a + " slot " + std::to_string(choice.b) + " ROTS";
    case Choice::Kind::kZombie:
      return a + " is STOPPED, replaced, and goes on";
  }
  return "?";
}

}  // namespace meshstage::explorer
