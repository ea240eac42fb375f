#include <algorithm>

#include <meshstage/core/error/rank_tree.hpp>
#include <meshstage/core/protocol/codec.hpp>

#include "tests/support/explorer/world.hpp"
#include "tests/support/explorer/world_impl.hpp"

namespace meshstage::explorer {

// --- events and actions ---

void World::feed(Node& node, const Event& event) {
  std::vector<Event> todo{event};
  for (std::size_t i = 0; i < todo.size(); ++i) {
    std::vector<Action> out;
    const bool waited = waits(node);
    transition(node.state, todo[i], out);
    for (const Action& action : out) {
      const auto* death = std::get_if<NoteDeath>(&action);
      if (death != nullptr && death->rank == node.rank && waited && !compares(node) &&
          !std::holds_alternative<ReadStuck>(todo[i])) {
        wrong("rank " + std::to_string(node.rank) + " names itself, though it waits like others");
      }
      const bool slots = std::holds_alternative<VerifySlots>(action);
      const auto* files = std::get_if<VerifyDisk>(&action);
      if (slots || files != nullptr) {
        Job job{Job::Kind::kRead, node.state.generation, node.rank, slots ? 0 : 1};
        if (!slots) job.id = files->newer_than, job.base = files->up_to;
        if (node.disk == Node::Disk::kFast) {
          todo.push_back(read(node, job));
        } else {
          node.jobs.push_back(std::move(job));
        }
      } else if (const auto* publish = std::get_if<PublishOld>(&action)) {
        todo.emplace_back(publish_old(node, *publish));
      } else if (const auto* find = std::get_if<FindOld>(&action)) {
        todo.emplace_back(
            OldFound{old_named(), find->prove ? old_step_of(old_files_of(node)) : OldStep{}});
      } else if (const auto* accept = std::get_if<AcceptReplica>(&action)) {
        carry_out(node, action);
        todo.emplace_back(ReplicaReady{accept->ward, accept->id, true});
      } else if (std::holds_alternative<CheckStructure>(action) && left_.mismatches == 0 &&
                 !node.hung) {
        todo.emplace_back(StructureChecked{});
      } else if (!carry_out(node, action)) {
        return;  // it ended here
      }
    }
    if (!active(node)) clear_messages_to(node);
  }
}

Event World::read(const Node& node, const Job& job) {
  const Rules& rules = bounds_->rules;
  std::vector<Claim> slots = slot_claims(node, rules.verify_claims);
  if (job.slot == 0) return SlotsVerified{std::move(slots), evidence(node)};
  FilesVerified found;
  verify_files(node, job.id, rules.found_anywhere, found);
  if (rules.found_anywhere) take_strays(node, job.id, rules.verify_claims, found);
  claim_old(node, job.id, found);
  if (!job.base.exists()) return found;
  found.claims.insert(found.claims.end(), slots.begin(), slots.end());
  std::erase_if(found.claims,
                [&](const Claim& claim) { return !asked_again(claim.id, job.id, job.base); });
  return found;
}

bool World::steps_fit_messages() const {
  constexpr ImageId kNewest{~std::uint64_t{0}, 0};
  World copy = *this;                                    // reading takes strays
  std::map<std::pair<int, ImageId>, std::size_t> bytes;  // by the root's child, and step
  for (int rank = 1; rank < bounds_->world; ++rank) {
    const Node& node = copy.nodes_[static_cast<std::size_t>(rank)];
    int child = rank;
    for (auto up = tree::parent(rank); up && *up != 0; up = tree::parent(child)) child = *up;
    const Job all{Job::Kind::kRead, node.state.generation, rank, 1, kNoImage, kNewest};
    const Event found = copy.read(node, all);
    for (const Claim& claim : std::get<FilesVerified>(found).claims) {
      bytes[{child, claim.id}] += encoded_bytes(claim);
    }
  }
  const std::size_t most = nodes_[0].state.config->most_claim_bytes;
  return std::all_of(bytes.begin(), bytes.end(),
                     [most](const auto& step) { return step.second <= most; });
}

void World::send(const Node& node, int to, const Message& message) {
  const std::uint64_t generation = message.generation;
  const Node* there = live_node(to, generation);
  // What a dead, replaced or broken rank would not hear is not kept in flight.
  const bool lost =
      there == nullptr || (bounds_->rules.generations_apart &&
                           (there->state.generation > generation ||
                            (there->state.generation == generation && !active(*there)) ||
                            (there->state.generation < generation && !there->pending)));
  const DeadLink link{node.rank, to, generation};
  if (lost || std::binary_search(dead_links_.begin(), dead_links_.end(), link)) return;
  auto letter = std::make_shared<Letter>(Letter{node.rank, to, message, {}});
  put(letter->bytes, letter->message);
  letters_.push_back(std::move(letter));
  say(node, std::string("sends ") + name_of(message.body) + " to rank " + std::to_string(to));
}

void World::keep_early(const Early& early) {
  early_.insert(std::lower_bound(early_.begin(), early_.end(), early), early);
}

bool World::take_early(const Early& early) {
  const auto it = std::find(early_.begin(), early_.end(), early);
  if (it == early_.end()) return false;
  early_.erase(it);
  return true;
}

void World::note_point(const Node& node, const Reached& reached) {
  points_ |= std::uint64_t{1} << static_cast<unsigned>(reached.point);
  const bool generation_is_newest = node.state.generation == store_generation_;
  switch (reached.point) {
    case Point::kChosen: {
      const ImageId best = newest_covered(-1, true, true);
      // A loss since the claims were made is the next recovery's concern.
      if (generation_is_newest && lost_in_ < store_generation_ && reached.id != best) {
        wrong("generation " + std::to_string(node.state.generation) + " chose " + name(reached.id) +
              ", but " + name(best) + " is the newest that is covered");
      }
      break;
    }
    case Point::kDecided:
      check_newest(node);
      agreed_ = std::max(agreed_, reached.id);
      ever_agreed_ = true;
      break;
    case Point::kEstablished:
      check_newest(node);
      if (!generation_is_newest) break;
      if (!beyond_ && reached.id < agreed_) {
        wrong(name(reached.id) + " is recovered, though " + name(agreed_) + " was complete");
      }
      agreed_ = reached.id;
      if (lost_in_ < store_generation_) {  // redundancy is whole
        degraded_ = !spread();
        beyond_ = false;
      }
      if (reached.id.exists()) ever_agreed_ = true;
      break;
    default:
      break;
  }
}

/// The Store's newest generation is the only one that decides anything.
void World::check_newest(const Node& node) {
  if (node.state.generation == store_generation_) return;
  wrong("generation " + std::to_string(node.state.generation) + " decides, though generation " +
        std::to_string(store_generation_) + " is the newest");
}

void World::check_mixed(const Node& node, ImageId content) {
  const std::uint64_t generation = node.state.generation;
  if (restored_generation_ != generation) restored_.clear();
  restored_generation_ = generation;
  restored_[node.rank] = content;
  for (const auto& [rank, id] : restored_) {
    if (id == content) continue;
    wrong("mixed: rank " + std::to_string(rank) + " restored " + name(id) + ", rank " +
          std::to_string(node.rank) + " " + name(content));
  }
}

/// Carries out one action for one node, as a driver would. False if the process ended there.
struct World::CarryOut {
  World& world;
  Node& node;
  std::uint64_t generation;

  bool operator()(const Send& a) const {
    world.send(node, a.to, a.message);
    return true;
  }
  bool operator()(const WriteOwn& a) const {
    world.say(node, "writes " + name(a.id) + " into own slot " + std::to_string(a.slot));
    Job job{Job::Kind::kOwn, generation, node.rank, a.slot, a.id, a.base};
    job.lenders = a.sizes.borrowed_bytes;
    world.begin_slot(node, job);
    world.overwrite_old(node, true);
    // A rank that stages its last step then leaves: who takes another step for the last one waits
    // for those for ever.
    const bool last = node.state.base_orders.end;
    const auto [it, first] = world.last_.emplace(a.id, last);
    if (!first && it->second != last) {
      world.wrong(name(a.id) + " is the last step for one rank and not for another");
    }
    return true;
  }
  bool operator()(const AcceptReplica& a) const {
    world.say(node, "writes " + name(a.id) + " of rank " + std::to_string(a.ward) +
                        " into held slot " + std::to_string(a.slot));
    Job job{Job::Kind::kReplica, generation, a.ward, a.slot, a.id, a.base};
    job.lenders = a.sizes.borrowed_bytes;
    world.begin_slot(node, job);
    world.overwrite_old(node, false);
    return true;
  }
  bool operator()(const ExpectDigest& a) const {
    for (Job& job : node.jobs) {
      if (job.kind == Job::Kind::kReplica && job.owner == a.ward && job.id == a.id) {
        job.digest_known = true;
        job.loan = static_cast<int>(a.image_digest.low);
      }
    }
    return true;
  }
  bool operator()(const SendImage& a) const {
    start_stream(a.holder, node.rank, a.id, Content::kImage);
    return true;
  }
  bool operator()(const Fetch& a) const {
    const bool own = a.source.owner == node.rank;
    world.say(node, "fetches " + name(a.source.id) + " of rank " + std::to_string(a.source.owner) +
                        " from " + to_string(a.source.place) + " of rank " +
                        std::to_string(a.source.at) + " into " + (own ? "own" : "held") + " slot " +
                        std::to_string(a.slot));
    Job job{Job::Kind::kFetch, generation, a.source.owner, a.slot, a.source.id, a.source.base};
    job.source = a.source;
    job.lenders = a.source.sizes.borrowed_bytes;
    job.loan = static_cast<int>(a.source.image_digest.low);
    job.moves = a.move;
    job.sending = a.source.at == node.rank ||
                  world.take_early({a.source.at, node.rank, a.source.owner, generation, a.source.id,
                                    Early::What::kImage});
    if (world.bounds_->scarce) world.give_up_strays(node, a.source.id, a.spare);
    if (own && a.source.needs_lenders()) {
      for (const Loan& loan : a.source.borrowed) {
        world.send(node, loan.rank, {generation, Want{a.source.id, {}}});
      }
    }
    world.begin_slot(node, job);
    return true;
  }
  bool operator()(const Serve& a) const {
    start_stream(a.to, a.source.owner, a.source.id, Content::kImage);
    return true;
  }
  bool operator()(const ServeLent& a) const {
    const MemorySlot& slot = node.own[static_cast<std::size_t>(a.slot)];
    if (slot.header != MemorySlot::Header::kSealed || slot.id != a.id) {
      world.wrong("rank " + std::to_string(node.rank) + " is to complete an image of " +
                  name(a.id) + " from a slot that has another");
    }
    if (world.take_early({a.to, node.rank, a.to, generation, a.id, Early::What::kWant})) {
      start_stream(a.to, a.to, a.id, Content::kLent);
    } else {
      world.keep_early({a.to, node.rank, a.to, generation, a.id, Early::What::kServe});
    }
    return true;
  }
  bool operator()(const TakeWant& a) const {
    if (world.take_early({a.from, node.rank, a.from, generation, a.want.id, Early::What::kServe})) {
      start_stream(a.from, a.from, a.want.id, Content::kLent);
    } else {
      world.keep_early({a.from, node.rank, a.from, generation, a.want.id, Early::What::kWant});
    }
    return true;
  }
  bool operator()(const ReceiveStream& a) const {
    const StreamStart& start = a.start;
    for (Job& job : node.jobs) {
      if (job.owner != start.owner || job.id != start.id || job.generation != generation) continue;
      if (start.content == Content::kLent) {
        job.lent |= bit(a.from);
        return true;
      }
      if (job.kind == Job::Kind::kReplica ||
          (job.kind == Job::Kind::kFetch && job.source.at == a.from)) {
        job.sending = true;
        return true;
      }
    }
    // Of a step that has failed here nothing is kept; a Fetch may still come.
    if (start.id.generation < generation) {
      world.keep_early({a.from, node.rank, start.owner, generation, start.id, Early::What::kImage});
    }
    return true;
  }
  void start_stream(int to, int owner, ImageId id, Content content) const {
    StreamStart start;
    start.owner = owner;
    start.id = id;
    start.content = content;
    world.send(node, to, {generation, start});
  }
  bool operator()(const StopBorrowing& a) const {
    world.say(node, "borrows nothing any more from rank " + std::to_string(a.from));
    node.unborrowed |= bit(a.from);
    return true;
  }
  bool operator()(const Connect&) const {
    node.jobs.push_back({Job::Kind::kConnect, generation});
    return true;
  }
  bool operator()(const CheckStructure&) const {
    node.jobs.push_back({Job::Kind::kCompare, generation});
    return true;
  }
  bool operator()(const AskStore& a) const {
    node.jobs.push_back({Job::Kind::kAsk, generation, node.rank, a.note ? 1 : 0, a.id});
    return true;
  }
  bool operator()(const AbortRound& a) const {
    for (Job& job : node.jobs) job.aborted = job.aborted || job.id == a.id;
    return true;
  }
  bool operator()(const AbortTransfers&) const {
    node.jobs.clear();
    std::erase_if(world.early_,
                  [&](const Early& e) { return e.generation == generation && e.to == node.rank; });
    return true;
  }
  bool operator()(const RestoreTrainer& a) const {
    world.say(node, "restores its trainer to " + name(a.id));
    node.next_step = static_cast<int>(a.id.step) + 1;
    world.remove_strays(node);
    if (world.bounds_->old_kept) node.old_held = 0;
    if (node.zombie) return true;
    const MemorySlot slot = a.slot >= 0 ? node.own[a.slot] : MemorySlot{};
    // What rots between its verification and its use is not the protocol's to notice.
    const bool whole = slot.whole || world.lost_in_ == generation;
    if (slot.header != MemorySlot::Header::kSealed || !whole || slot.content_owner != node.rank) {
      world.wrong("rank " + std::to_string(node.rank) + " restores torn or foreign bytes as " +
                  name(a.id));
    }
    world.check_mixed(node, slot.content);
    if (world.mismatch_generation_ == generation) {
      world.wrong("rank " + std::to_string(node.rank) +
                  " writes its trainer, though a structure does not match");
    }
    return true;
  }
  bool operator()(const Reassemble& a) const {
    const ImageId id = a.step.id;
    world.say(node, "assembles " + name(id) + " for its trainer");
    node.next_step = static_cast<int>(id.step);  // once more, in the new cut
    world.remove_strays(node);
    if (node.zombie) return true;
    if (world.lacks_image(node, id)) {
      world.wrong("rank " + std::to_string(node.rank) + " assembles " + name(id) +
                  ", of which an image is missing");
    }
    world.check_mixed(node, id);
    return true;
  }
  bool operator()(const RecoveredNothing& a) const {
    world.say(node, a.old.id.exists() ? "starts with the old job's step" : "starts at step 0");
    if (world.bounds_->old_job && node.rank == 0 && !a.old.id.exists() && !node.zombie)
      world.wrong("step 0 begins, though the step of an old job is on disk");
    const bool now = generation == world.store_generation_ && world.lost_in_ < generation;
    if (world.bounds_->old_memory && node.rank == 0 && !node.zombie && now &&
        a.old.id != kOldStepId) {
      world.wrong("the old job's newest step is passed over");
    }
    // The files of a host that is lost since cannot be read; nobody trains on, for it had a rank.
    const bool there = now || !world.bounds_->old_apart;
    if (a.old.id > world.old_on_disk().id && !node.zombie && there) {
      world.wrong("an old job's step is gone on from, though one of its files is damaged");
    }
    node.next_step = 1;
    world.remove_strays(node);
    if (world.ever_agreed_ && !node.zombie)
      world.wrong("recover() returns step 0, though a step was complete once");
    return true;
  }
  bool operator()(const RecoverFailed& a) const {
    world.say(node, "gives up: " + a.failure.why);
    node.failure = a.failure;
    node.gave_up = true;
    if (world.bounds_->old_job && world.bounds_->mismatches == 0 && !node.zombie &&
        a.failure.kind == ErrorKind::kStructureMismatch) {
      world.wrong("gives up, though the step of an old job is on disk");
    }
    // An image that rots meanwhile becomes no file.
    if (world.bounds_->any_cut && world.lost_in_ < generation && !node.zombie &&
        a.failure.kind == ErrorKind::kStructureMismatch) {
      world.wrong("gives up, though the step can be assembled in another cut");
    }
    if (a.failure.kind == ErrorKind::kUnrecoverable && !node.zombie) {
      const ImageId best = world.newest_covered(-1, true, true);
      if (best.exists()) world.wrong("called unrecoverable, though " + name(best) + " is covered");
      world.finished_ = true;
    }
    // A person is told; nothing is lost.
    if (a.failure.kind == ErrorKind::kInvalidState && world.bounds_->claims > 0) {
      const ImageId best = world.newest_covered(-1, true, true);
      // What is lost or changed since the claims were made is the next recovery's concern.
      const bool fit = world.lost_in_ < generation && world.steps_fit_messages();
      if (fit && !node.zombie && (best.exists() || world.bounds_->old_job)) {
        world.wrong("gives up for the number of images, though " +
                    name(best.exists() ? best : kOldStepId) + " is covered");
      }
      world.finished_ = true;
    }
    return true;
  }
  bool operator()(const Announce& a) const {
    if (a.verdict == Verdict::kOpen) return true;
    const bool complete = a.verdict == Verdict::kComplete;
    if (complete && world.bounds_->old_kept) node.old_held = 0;
    world.say(node, "knows " + name(a.id) + (complete ? " to be complete" : " to have failed"));
    const auto [it, first] = world.verdicts_.emplace(a.id, complete);
    if (!first && it->second != complete) {
      world.wrong(name(a.id) + " is complete for one rank and failed for another");
    }
    return true;
  }
  bool operator()(const Prune& a) const {
    world.say(node, "removes files older than " + name(a.older_than));
    const auto is_older = [&](const File& file) { return file.id < a.older_than; };
    std::erase_if(node.files, is_older);
    for (LeftFiles& left : world.left_files_) {
      if (left.host != node.host || world.reader_of(left.writer, node.host) != node.rank) continue;
      std::erase_if(left.files, is_older);
    }
    std::erase_if(world.left_files_, [](const LeftFiles& left) { return left.files.empty(); });
    return true;
  }
  bool operator()(const RemoveVault&) const {
    world.say(node, "removes its vault");
    node.own = {};
    std::fill(node.held.begin(), node.held.end(), MemorySlots{});
    const int world_size = world.bounds_->world;
    const auto everyone =
        world_size == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << world_size) - 1;
    if (world.wants_finish_ == everyone) world.finished_ = true;
    return true;
  }
  bool operator()(const Reached& a) const {
    world.note_point(node, a);
    if (world.crash_.times > 0 && world.crash_.rank == node.rank && world.crash_.point == a.point &&
        --world.crash_.times == 0) {
      world.say(node, "is killed at " + std::string(to_string(a.point)));
      world.end_process(node, false);
      return false;
    }
    return true;
  }
  bool operator()(const Refuse& a) const {
    if (a.reason == Refuse::Reason::kMalformed && world.bounds_->rules == Rules{}) {
      world.wrong("rank " + std::to_string(node.rank) + " refuses as malformed: " + a.why);
    }
    return true;
  }
  /// VerifySlots and VerifyDisk are answered by feed().
  template <class A>
  bool operator()(const A&) const {
    return true;
  }
};

bool World::carry_out(Node& node, const Action& action) {
  return std::visit(CarryOut{*this, node, node.state.generation}, action);
}

}  // namespace meshstage::explorer
