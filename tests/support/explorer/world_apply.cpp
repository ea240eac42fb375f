#include <algorithm>

#include "tests/support/explorer/world.hpp"
#include "tests/support/explorer/world_impl.hpp"

namespace meshstage::explorer {

/// Ends what a node's driver was doing.
bool World::end_job(const Choice& choice) {
  Node& node = nodes_[static_cast<std::size_t>(choice.a)];
  const auto take = [&](Job::Kind kind, int owner, bool match_generation) -> std::optional<Job> {
    for (auto it = node.jobs.begin(); it != node.jobs.end(); ++it) {
      if (it->kind != kind || it->owner != owner) continue;
      if (match_generation && it->generation != choice.c) continue;
      Job job = *it;
      node.jobs.erase(it);
      return job;
    }
    return std::nullopt;
  };
  switch (choice.kind) {
    case Kind::kOwnSealed:
    case Kind::kOwnDiffers:
    case Kind::kOwnFailed: {
      const auto job = take(Job::Kind::kOwn, node.rank, false);
      if (!job) return false;
      if (choice.kind != Kind::kOwnFailed) {
        const bool differs = choice.kind == Kind::kOwnDiffers;
        if (differs) --left_.differences;
        const int loan = differs ? node.rank + 1 : 0;  // like nobody else's
        seal_slot(node.own[job->slot], *job, loan);
        const Digest digest{0, static_cast<std::uint64_t>(loan)};
        OwnSealed sealed{job->id, digest};
        const Config& config = *node.state.config;
        for (const int rank : config.lenders[static_cast<std::size_t>(node.rank)]) {
          const bool borrowed = (job->lenders & bit(rank)) != 0;
          sealed.borrowed.push_back({job->id, borrowed ? 1U : 0U, digest});
        }
        sealed.lent.assign(config.borrowers.size(), digest);
        feed(node, sealed);
      } else {
        if (!job->aborted) --left_.local_failures;
        feed(node, OwnFailed{job->id, "no room"});
      }
      return true;
    }
    case Kind::kReplicaSealed:
    case Kind::kReplicaFailed: {
      const auto job = take(Job::Kind::kReplica, choice.b, true);
      if (!job) return false;
      MemorySlot& slot = held_by(node, job->owner)[job->slot];
      if (choice.kind == Kind::kReplicaFailed) {
        if (!job->aborted) --left_.local_failures;
        feed(node, ReplicaFailed{job->owner, job->id, "no room"});
      } else if (job->generation != node.state.generation || !active(node)) {
        // Bytes of a generation that is over arrive in a slot that may have another use by now.
        if (slot.id != job->id || slot.header != MemorySlot::Header::kWriting) slot.whole = false;
      } else {
        if (Node* owner = live_node(job->owner, job->generation)) {
          carry_out(*owner, Reached{Point::kChunkSent, job->id});
        }
        if (!carry_out(node, Reached{Point::kChunkReceived, job->id})) return true;
        seal_slot(slot, *job, job->loan);
        feed(node, ReplicaSealed{job->owner, job->id});
      }
      return true;
    }
    case Kind::kFetched:
    case Kind::kFetchFailed: {
      const auto job = take(Job::Kind::kFetch, choice.b, true);
      if (!job) return false;
      MemorySlot& slot =
          (job->owner == node.rank ? node.own : held_by(node, job->owner))[job->slot];
      if (choice.kind == Kind::kFetchFailed) {
        if (!fetch_broken(node, *job)) --left_.local_failures;
        feed(node, FetchFailed{job->owner, ErrorKind::kIo, "no room"});
      } else if (job->generation != node.state.generation || !active(node)) {
        if (slot.id != job->id || slot.header != MemorySlot::Header::kWriting) slot.whole = false;
      } else {
        const MemorySlot* source = source_of(*job);
        const bool whole = source == nullptr || source->whole;
        seal_slot(slot, *job, job->loan);
        slot.whole = whole;
        if (job->moves) *stray_slot(job->source) = {};
        feed(node, Fetched{job->owner});
      }
      return true;
    }
    case Kind::kAnswered:
    case Kind::kUnanswered: {
      const auto job = take(Job::Kind::kAsk, node.rank, false);
      if (!job) return false;
      if (job->slot == 1 && !note_.exists()) note_ = job->id;
      StoreAnswered answer{job->id};
      if (choice.kind == Kind::kUnanswered) {
        --left_.unanswered;
        answer = {job->id, StoreAnswered::Found::kNothing, "no answer"};
      } else if (node.state.generation < store_generation_) {
        answer = {job->id, StoreAnswered::Found::kSuperseded, "a newer generation was claimed"};
      }
      feed(node, answer);
      return true;
    }
    case Kind::kConnected:
      if (!take(Job::Kind::kConnect, 0, false)) return false;
      feed(node, Connected{});
      return true;
    case Kind::kCompared:
    case Kind::kMismatch: {
      const auto job = take(Job::Kind::kCompare, 0, false);
      if (!job) return false;
      if (choice.kind == Kind::kMismatch) {
        --left_.mismatches;
        mismatch_generation_ = node.state.generation;
        feed(node, StructureChecked{"w", "shapes differ"});
      } else {
        feed(node, StructureChecked{});
      }
      return true;
    }
    case Kind::kRead:
    case Kind::kReadStuck: {
      const auto job = take(Job::Kind::kRead, node.rank, false);
      if (!job) return false;
      node.disk = Node::Disk::kFast;
      feed(node, choice.kind == Kind::kRead ? read(node, *job) : Event(ReadStuck{"reads nothing"}));
      return true;
    }
    default:
      return false;
  }
}

bool World::apply(const Choice& choice) {
  const auto possible = choices();
  if (std::find(possible.begin(), possible.end(), choice) == possible.end()) return false;
  step(choice);
  return true;
}

void World::step(const Choice& choice) {
  log_.clear();
  Node& node = nodes_[static_cast<std::size_t>(choice.a)];
  switch (choice.kind) {
    case Kind::kForm:
      ++store_generation_;
      wants_finish_ = 0;
      std::erase_if(dead_links_, [this](const DeadLink& link) {  // unless a zombie is still on it
        return std::none_of(nodes_.begin(), nodes_.end(), [&](const Node& n) {
          return n.zombie && n.state.generation == link.generation;
        });
      });
      for (int rank = 0; rank < bounds_->world; ++rank) {
        nodes_[static_cast<std::size_t>(rank)].alive = true;
        nodes_[static_cast<std::size_t>(rank)].disk = Node::Disk::kFast;
        nodes_[static_cast<std::size_t>(rank)].pending = true;
      }
      break;
    case Kind::kFormed:
      node.pending = node.gave_up = node.hung = false;
      node.waited = 0;
      feed(node, Formed{store_generation_});
      clear_messages_to(node);
      break;
    case Kind::kDeliver: {
      const auto it = std::find_if(letters_.begin(), letters_.end(), [&](const auto& letter) {
        return letter->from == choice.a && letter->to == choice.b &&
               letter->message.generation == choice.c;
      });
      const auto letter = *it;
      letters_.erase(it);
      feed(*live_node(choice.b, choice.c), Received{choice.a, letter->message});
      break;
    }
    case Kind::kStage:
      node.waited = 0;
      feed(node, StageRequested{static_cast<std::uint64_t>(node.next_step++),
                                {0, 0, {}, borrowed_by(node)}});
      break;
    case Kind::kSkip:
      --left_.skips;
      feed(node, StageSkipped{static_cast<std::uint64_t>(node.next_step++)});
      break;
    case Kind::kPersist: {
      const auto write = [&](const MemorySlots& pair, int owner) {
        for (const MemorySlot& slot : pair) {
          const bool is_whole = owner == node.rank || slot.lenders == 0;
          if (slot.header == MemorySlot::Header::kSealed && slot.whole && is_whole &&
              slot.id == node.state.base) {
            node.files.push_back({owner, slot.id, slot.base, slot.lenders, slot.loan});
          }
        }
      };
      write(node.own, node.rank);
      for (std::size_t w = 0; w < node.held.size(); ++w) {
        write(node.held[w], node.state.config->wards[w]);
      }
      std::sort(node.files.begin(), node.files.end());
      feed(node, Persisted{node.state.base});
      break;
    }
    case Kind::kWish:
      --left_.ends;
      feed(node, Wished{true, false});
      break;
    case Kind::kFinish:
      if (node.next_step <= bounds_->steps) {
        --left_.early_ends;
        node.next_step = bounds_->steps + 1;
      }
      if (!node.zombie) wants_finish_ |= std::uint64_t{1} << static_cast<unsigned>(node.rank);
      feed(node, FinishRequested{});
      break;
    case Kind::kLost: {
      --left_.lost_messages;
      const DeadLink link{choice.a, choice.b, choice.c};
      dead_links_.insert(std::lower_bound(dead_links_.begin(), dead_links_.end(), link), link);
      std::erase_if(letters_, [&](const auto& letter) {
        return letter->from == link.from && letter->to == link.to &&
               letter->message.generation == link.generation;
      });
      break;
    }
    case Kind::kSlowDisk:
      --left_.slow_disks;
      node.disk = Node::Disk::kSlow;
      break;
    case Kind::kStuckDisk:
      --left_.stuck_disks;
      node.disk = Node::Disk::kStuck;
      break;
    case Kind::kHang:
      --left_.hangs;
      node.hung = true;
      break;
    case Kind::kWaited:
      if (choice.b == 0) --left_.waits;
      feed(node, Waited{++node.waited});
      break;
    case Kind::kTimeout:
      --left_.timeouts;
      [[fallthrough]];
    case Kind::kBroken:
      feed(node, Broken{-1, ErrorKind::kPeerLost, {}});
      break;
    case Kind::kCrash:
      --left_.crashes;
      end_process(node, false);
      break;
    case Kind::kHostLost:
      if (left_.host_losses > 0 && !degraded_) {
        --left_.host_losses;
      } else {
        --left_.losses_beyond;
        beyond_ = true;
      }
      lose();
      lose_host(node.host);
      break;
    case Kind::kReseat:
    case Kind::kSwap: {
      --left_.reseats;
      std::vector<int> hosts;
      for (int rank = 0; rank < bounds_->world; ++rank) {
        const int host = nodes_[static_cast<std::size_t>(rank)].host;
        const int shift = choice.kind == Kind::kReseat ? choice.a : 0;
        hosts.push_back((host + shift) % host_count());
      }
      if (choice.kind == Kind::kSwap) {
        std::swap(hosts[static_cast<std::size_t>(choice.a)],
                  hosts[static_cast<std::size_t>((choice.a + 1) % bounds_->world)]);
      }
      reseat(hosts);
      break;
    }
    case Kind::kFlip:
      --left_.flips;
      lose();
      const_cast<MemorySlot&>(slot_at(node, choice.b)).whole = false;
      break;
    case Kind::kZombie: {
      --left_.zombies;
      lose();
      Node old = node;
      old.zombie = true;
      old.files.clear();
      old.old_files = 0;
      node.unborrowed = 0;
      node.jobs.clear();
      node.own = {};
      std::fill(node.held.begin(), node.held.end(), MemorySlots{});
      node.state = make_state(old.state.config);
      nodes_.push_back(std::move(old));
      break;
    }
    default:
      end_job(choice);
      break;
  }
  check();
}

}  // namespace meshstage::explorer
