#include <algorithm>
#include <utility>

#include <meshstage/core/protocol/codec.hpp>

#include "tests/support/explorer/world.hpp"
#include "tests/support/explorer/world_impl.hpp"

namespace meshstage::explorer {

World::World(std::shared_ptr<const Bounds> bounds) : bounds_(std::move(bounds)) {
  const Bounds& b = *bounds_;
  left_ = {b.crashes,        b.host_losses, b.losses_beyond, b.lost_messages, b.timeouts,
           b.local_failures, b.skips,       b.mismatches,    b.flips,         b.zombies,
           b.differences,    b.early_ends,  b.ends,          b.unanswered,    b.reseats,
           b.hangs,          b.waits,       b.slow_disks,    b.stuck_disks};
  for (int rank = 0; rank < b.world; ++rank) {
    Node node;
    node.rank = rank;
    node.host = rank / b.seats;
    auto config = std::make_shared<Config>(
        *make_config(rank, b.world, b.holders, b.rules, b.lenders, 0, b.old_job || b.any_cut));
    if (b.claims > 0) {
      config->most_claim_bytes = static_cast<std::size_t>(b.claims) * encoded_bytes(Claim{});
    }
    node.state = make_state(std::move(config));
    node.held.resize(node.state.held.size());
    nodes_.push_back(std::move(node));
  }
  if (b.old_memory) begin_old();
}

void World::wrong(const std::string& what) {
  if (violation_.empty()) violation_ = what;
}

void World::say(const Node& node, const std::string& text) {
  if (!keep_log_) return;
  log_.push_back((node.zombie ? "the old rank " : "rank ") + std::to_string(node.rank) + " " +
                 text);
}

// --- memory ---

std::size_t World::ward_of(const Node& node, int ward) {
  const auto& wards = node.state.config->wards;
  return static_cast<std::size_t>(std::find(wards.begin(), wards.end(), ward) - wards.begin());
}

const MemorySlot& World::slot_at(const Node& node, int index) {
  const auto i = static_cast<std::size_t>(index);
  return i < 2 ? node.own[i] : node.held[i / 2 - 1][i % 2];
}

void World::begin_slot(Node& node, const Job& job) {
  for (const Job& other : node.jobs) {
    const bool writes = other.kind == Job::Kind::kOwn || other.kind == Job::Kind::kReplica ||
                        other.kind == Job::Kind::kFetch;
    if (writes && other.owner == job.owner && other.slot == job.slot &&
        other.generation == job.generation) {
      wrong("rank " + std::to_string(node.rank) + " writes " + name(job.id) +
            " into a slot that is still being written with " + name(other.id));
    }
  }
  MemorySlots& pair = job.owner == node.rank ? node.own : held_by(node, job.owner);
  pair[static_cast<std::size_t>(job.slot)] = {MemorySlot::Header::kWriting, job.id, job.base};
  node.jobs.push_back(job);
}

void World::seal_slot(MemorySlot& slot, const Job& job, int loan) {
  slot = {
      MemorySlot::Header::kSealed, job.id, job.base, true, job.id, job.owner, job.lenders, loan};
}

const MemorySlot* World::own_image(int rank, ImageId id) const {
  for (const MemorySlot& slot : nodes_[static_cast<std::size_t>(rank)].own) {
    if (slot.header == MemorySlot::Header::kSealed && slot.whole && slot.id == id &&
        slot.content == id && slot.content_owner == rank) {
      return &slot;
    }
  }
  return nullptr;
}

const MemorySlot* World::any_image(int rank, ImageId id, int without) const {
  const MemorySlot* found = nullptr;
  if (nodes_[static_cast<std::size_t>(rank)].host != without) found = own_image(rank, id);
  for (const Stray& stray : strays_) {
    if (stray.rank != rank || stray.host == without) continue;
    for (const MemorySlot& slot : stray.own) {
      if (slot.header == MemorySlot::Header::kSealed && slot.whole && slot.id == id) found = &slot;
    }
  }
  return found;
}

bool World::spread() const {
  for (int rank = 0; rank < bounds_->world && bounds_->world > 1; ++rank) {
    const Node& node = nodes_[static_cast<std::size_t>(rank)];
    const auto& holders = node.state.config->holders[static_cast<std::size_t>(rank)];
    const auto& lenders = node.state.config->lenders[static_cast<std::size_t>(rank)];
    const auto beside = [&](int other) {
      return nodes_[static_cast<std::size_t>(other)].host == node.host;
    };
    if (std::all_of(holders.begin(), holders.end(), beside) ||
        std::any_of(lenders.begin(), lenders.end(), beside)) {
      return false;
    }
  }
  return true;
}

bool World::has_lenders(const MemorySlot& replica, int without) const {
  for (int rank = 0; rank < bounds_->world; ++rank) {
    if ((replica.lenders & bit(rank)) == 0) continue;
    const MemorySlot* by = any_image(rank, replica.id, without);
    if (by == nullptr || by->loan != replica.loan) return false;
  }
  return true;
}

Ranks World::borrowed_by(const Node& node) const {
  Ranks ranks = 0;
  for (const int rank : node.state.config->lenders[static_cast<std::size_t>(node.rank)]) {
    ranks |= bit(rank);
  }
  return ranks & ~node.unborrowed;
}

/// What an image says of itself, as far as it borrows or lends something.
void World::add_loans(Claim& claim) const {
  const auto& lenders = bounds_->lenders;
  for (int rank = 0; rank < static_cast<int>(lenders.size()); ++rank) {
    if ((claim.sizes.borrowed_bytes & bit(rank)) != 0) {
      claim.borrowed.push_back({rank, claim.image_digest});
    }
    const auto& list = lenders[static_cast<std::size_t>(rank)];
    if (std::find(list.begin(), list.end(), claim.owner) != list.end()) {
      claim.lent.push_back({rank, claim.image_digest});
    }
  }
}

Claim World::claim_of(const Node& node, const MemorySlot& slot, int owner, Place place,
                      int index) const {
  Claim claim{node.rank, owner, place, index, bounds_->world, slot.id, slot.base, {}, {}};
  claim.sizes.borrowed_bytes = slot.lenders;
  claim.image_digest.low = static_cast<std::uint64_t>(slot.loan);
  if (slot.old) claim.world_size = bounds_->world + 1;
  add_loans(claim);
  return claim;
}

std::vector<Claim> World::slot_claims(const Node& node, bool verify) const {
  std::vector<Claim> claims;
  const auto add = [&](const MemorySlot& slot, int owner, Place place, int index) {
    if (slot.header != MemorySlot::Header::kSealed || (verify && !slot.whole)) return;
    claims.push_back(claim_of(node, slot, owner, place, index));
  };
  for (int i = 0; i < 2; ++i) add(node.own[i], node.rank, Place::kOwnSlot, i);
  for (std::size_t w = 0; w < node.held.size(); ++w) {
    for (int i = 0; i < 2; ++i) {
      add(node.held[w][i], node.state.config->wards[w], Place::kHeldSlot, i);
    }
  }
  return claims;
}

ImageId World::evidence(const Node& node) const {
  ImageId newest = note_;
  const auto look = [&](const MemorySlots& pair) {
    for (const MemorySlot& slot : pair) {
      if (slot.header != MemorySlot::Header::kEmpty) newest = std::max(newest, slot.base);
    }
  };
  look(node.own);
  for (const MemorySlots& pair : node.held) look(pair);
  return newest;
}

ImageId World::newest_covered(int without, bool memory, bool disk) const {
  struct Copy {
    ImageId id;
    int owner;
    Ranks lenders;
    int loan;
    auto operator<=>(const Copy&) const = default;
  };
  std::vector<Copy> copies;
  for (int rank = 0; rank < bounds_->world; ++rank) {
    const Node& node = nodes_[static_cast<std::size_t>(rank)];
    const auto look_at = [&](const MemorySlots& pair, int owner) {
      for (const MemorySlot& slot : pair) {
        const bool good = slot.header == MemorySlot::Header::kSealed && slot.whole && !slot.old &&
                          slot.content == slot.id && slot.content_owner == owner &&
                          (owner == rank || has_lenders(slot, without));
        if (good) copies.push_back({slot.id, owner, slot.lenders, slot.loan});
      }
    };
    const auto look = [&](const auto& vault) {
      if (!memory || vault.host == without) return;
      look_at(vault.own, rank);
      for (std::size_t w = 0; w < vault.held.size(); ++w) {
        look_at(vault.held[w], node.state.config->wards[w]);
      }
    };
    look(node);
    for (const Stray& stray : strays_) {
      if (stray.rank == rank) look(stray);
    }
    if (!disk) continue;
    for (const File& file : node.files) {
      copies.push_back({file.id, file.owner, file.lenders, file.loan});
    }
  }
  for (const LeftFiles& left : left_files_) {
    for (const File& file : left.files) {
      if (disk) copies.push_back({file.id, file.owner, file.lenders, file.loan});
    }
  }
  std::sort(copies.begin(), copies.end());
  copies.erase(std::unique(copies.begin(), copies.end()), copies.end());
  // What differs from the image that is to complete its replicas counts for nothing.
  const auto fits = [&](const Copy* all, const Copy& copy) {
    for (int rank = 0; rank < bounds_->world; ++rank) {
      if ((copy.lenders & bit(rank)) != 0 && all[rank].loan != copy.loan) return false;
    }
    return true;
  };
  for (std::size_t end = copies.size(); end > 0;) {
    std::size_t begin = end;
    while (begin > 0 && copies[begin - 1].id == copies[end - 1].id) --begin;
    const Copy* all = copies.data() + begin;
    const bool covered = static_cast<int>(end - begin) == bounds_->world;
    if (covered &&
        std::all_of(all, all + (end - begin), [&](const Copy& copy) { return fits(all, copy); })) {
      return all->id;
    }
    end = begin;
  }
  return kNoImage;
}

void World::lose() {
  degraded_ = true;
  lost_in_ = store_generation_;
}

/// The promises, looked at from outside.
void World::check() {
  if (finished_ || !violation_.empty()) return;
  const ImageId files = bounds_->disk ? newest_covered(-1, false, true) : kNoImage;
  if (files < on_disk_) wrong("files of " + name(on_disk_) + " are gone, no newer step is on disk");
  on_disk_ = std::max(on_disk_, files);
  if (bounds_->old_memory && !ever_agreed_) check_old();
  if (beyond_ || !agreed_.exists()) return;
  if (newest_covered(-1, true, true) < agreed_) {
    return wrong(name(agreed_) + " was complete, and now no step that new is covered");
  }
  if (degraded_ || bounds_->world == 1) return;
  for (int host = 0; host < host_count(); ++host) {
    if (newest_covered(host, true, true) < agreed_) {
      return wrong(name(agreed_) + " is complete, but the loss of host " + std::to_string(host) +
                   " alone would lose it");
    }
  }
}

// --- processes ---

void World::end_process(Node& node, bool lose_memory) {
  node.alive = node.hung = false;
  node.waited = 0;
  node.disk = Node::Disk::kFast;
  node.pending = node.gave_up = false;
  node.jobs.clear();
  node.unborrowed = 0;
  const auto config = node.state.config;
  clear_messages_to(node);
  std::erase_if(letters_, [&](const auto& letter) {
    const std::uint64_t generation = letter->message.generation;
    return letter->to == node.rank && live_node(node.rank, generation) == nullptr;
  });
  std::erase_if(early_, [&](const Early& e) { return e.to == node.rank; });
  node.state = make_state(config);
  if (!lose_memory) return;
  node.own = {};
  node.old_held = node.old_files = 0;
  std::fill(node.held.begin(), node.held.end(), MemorySlots{});
}

void World::lose_host(int host) {
  for (int rank = 0; rank < bounds_->world; ++rank) {
    Node& node = nodes_[static_cast<std::size_t>(rank)];
    if (node.host == host) end_process(node, true);
  }
  std::erase_if(strays_, [&](const Stray& stray) { return stray.host == host; });
}

void World::reseat(const std::vector<int>& hosts) {
  for (int rank = 0; rank < bounds_->world; ++rank) {
    Node& node = nodes_[static_cast<std::size_t>(rank)];
    end_process(node, false);
    const int before = std::exchange(node.host, hosts[static_cast<std::size_t>(rank)]);
    if (before == node.host) continue;
    if (bounds_->local_disks) {
      LeftFiles stay{before, rank, std::exchange(node.files, {})};
      for (auto it = left_files_.begin(); it != left_files_.end(); ++it) {
        if (it->writer != rank || it->host != node.host) continue;
        node.files = it->files;  // it is back where it sat once
        left_files_.erase(it);
        break;
      }
      if (!stay.files.empty()) left_files_.push_back(std::move(stay));
    }
    Stray left{before, rank, node.own, node.held};
    node.own = {};
    std::fill(node.held.begin(), node.held.end(), MemorySlots{});
    const auto empty = [](const MemorySlots& pair) {
      return pair[0].header == MemorySlot::Header::kEmpty &&
             pair[1].header == MemorySlot::Header::kEmpty;
    };
    const bool nothing = empty(left.own) && std::all_of(left.held.begin(), left.held.end(), empty);
    for (auto it = strays_.begin(); it != strays_.end(); ++it) {
      if (it->rank != rank || it->host != node.host) continue;
      node.own = it->own;  // it is back where it sat once
      node.held = it->held;
      strays_.erase(it);
      break;
    }
    if (!nothing) strays_.push_back(std::move(left));
  }
  std::sort(strays_.begin(), strays_.end(), [](const Stray& a, const Stray& b) {
    return std::pair(a.host, a.rank) < std::pair(b.host, b.rank);
  });
  std::sort(left_files_.begin(), left_files_.end(), [](const LeftFiles& a, const LeftFiles& b) {
    return std::pair(a.host, a.writer) < std::pair(b.host, b.writer);
  });
}

int World::reader_of(int rank, int host) const {
  std::vector<int> here;
  for (int r = 0; r < bounds_->world; ++r) {
    if (nodes_[static_cast<std::size_t>(r)].host == host) here.push_back(r);
  }
  if (std::binary_search(here.begin(), here.end(), rank)) return rank;
  return here[static_cast<std::size_t>(rank) % here.size()];
}

void World::verify_files(const Node& node, ImageId newer_than, bool all,
                         FilesVerified& found) const {
  const auto look = [&](const File& file, bool claims) {
    found.evidence = std::max(found.evidence, file.id);
    if (file.id <= newer_than || !claims) return;
    const Place place = file.owner == node.rank ? Place::kOwnFile : Place::kHeldFile;
    found.claims.push_back(
        {node.rank, file.owner, place, 0, bounds_->world, file.id, file.base, {}, {}});
    found.claims.back().sizes.borrowed_bytes = file.lenders;
    found.claims.back().image_digest.low = static_cast<std::uint64_t>(file.loan);
    add_loans(found.claims.back());
  };
  for (const File& file : node.files) look(file, true);
  for (const LeftFiles& left : left_files_) {
    if (left.host != node.host) continue;
    for (const File& file : left.files) {
      look(file, file.owner == node.rank || (all && reader_of(file.owner, node.host) == node.rank));
    }
  }
}

void World::take_strays(const Node& node, ImageId newer_than, bool verify, FilesVerified& found) {
  for (Stray& stray : strays_) {
    const std::uint64_t now = node.state.generation;
    const bool mine = stray.taken == now && stray.by == node.rank;  // asked for once more
    if (stray.host != node.host || (stray.taken >= now && !mine)) continue;
    stray.taken = node.state.generation;
    stray.by = node.rank;
    const auto add = [&](const MemorySlots& pair, int owner) {
      for (int i = 0; i < 2; ++i) {
        const MemorySlot& slot = pair[static_cast<std::size_t>(i)];
        if (slot.header != MemorySlot::Header::kEmpty) {
          found.evidence = std::max(found.evidence, slot.base);
        }
        if (slot.header != MemorySlot::Header::kSealed || (verify && !slot.whole) ||
            slot.id < newer_than) {
          continue;
        }
        found.claims.push_back(claim_of(node, slot, owner, Place::kStray, i));
        found.claims.back().vault = stray.rank;
      }
    };
    add(stray.own, stray.rank);
    const auto& wards = nodes_[static_cast<std::size_t>(stray.rank)].state.config->wards;
    for (std::size_t w = 0; w < stray.held.size(); ++w) add(stray.held[w], wards[w]);
  }
}

void World::give_up_strays(const Node& node, ImageId chosen, ImageId spare) {
  for (Stray& stray : strays_) {
    if (stray.by != node.rank || stray.taken != node.state.generation) continue;
    const auto give_up = [&](MemorySlots& pair) {
      for (MemorySlot& slot : pair) {
        const bool sealed = slot.header == MemorySlot::Header::kSealed;
        if (!sealed || (slot.id != chosen && slot.id != spare)) slot = {};
      }
    };
    give_up(stray.own);
    for (MemorySlots& pair : stray.held) give_up(pair);
  }
}

void World::remove_strays(const Node& node) {
  std::erase_if(strays_, [&](const Stray& stray) {
    return stray.by == node.rank && stray.taken == node.state.generation;
  });
}

/// Drops what this process would ignore: messages of its generation once it is out of it, and of
/// older ones. (That it ignores them is asserted where it happens, in feed.)
void World::clear_messages_to(const Node& node) {
  if (!bounds_->rules.generations_apart) return;
  const std::uint64_t newest = active(node) ? node.state.generation - 1 : node.state.generation;
  std::erase_if(letters_, [&](const auto& letter) {
    if (letter->to != node.rank) return false;
    const std::uint64_t generation = letter->message.generation;
    if (node.zombie) return generation == node.state.generation && !active(node);
    for (std::size_t i = static_cast<std::size_t>(bounds_->world); i < nodes_.size(); ++i) {
      if (nodes_[i].rank == node.rank && nodes_[i].state.generation == generation) return false;
    }
    return generation <= newest;
  });
}

Node* World::live_node(int rank, std::uint64_t generation) {
  for (std::size_t i = static_cast<std::size_t>(bounds_->world); i < nodes_.size(); ++i) {
    if (nodes_[i].rank == rank && nodes_[i].state.generation == generation) return &nodes_[i];
  }
  Node& node = nodes_[static_cast<std::size_t>(rank)];
  return node.alive ? &node : nullptr;
}

bool World::link_dead(const Node& node) const {
  return std::any_of(dead_links_.begin(), dead_links_.end(), [&](const DeadLink& link) {
    return link.generation == node.state.generation &&
           (link.from == node.rank || link.to == node.rank);
  });
}

bool World::someone_gone(const Node& node) const {
  const std::uint64_t generation = node.state.generation;
  if (node.zombie || store_generation_ > generation) return true;
  for (int rank = 0; rank < bounds_->world; ++rank) {
    const Node& other = nodes_[static_cast<std::size_t>(rank)];
    if (other.alive && (other.pending || other.gave_up)) continue;
    if (!active(other) && other.state.mode != Mode::kFinished) return true;
    if (!other.alive) return true;
  }
  return false;
}

bool World::may_form() const {
  bool all_on_their_way = true;
  for (int rank = 0; rank < bounds_->world; ++rank) {
    const Node& node = nodes_[static_cast<std::size_t>(rank)];
    if (active(node) || node.state.mode == Mode::kFinished) return false;
    all_on_their_way = all_on_their_way && node.alive && node.pending;
  }
  return !all_on_their_way;
}

bool World::waits(const Node& node) {
  if (node.hung || !active(node)) return false;
  if (node.state.mode == Mode::kRecovering) return true;
  const auto& rounds = node.state.rounds;
  return std::any_of(rounds.begin(), rounds.end(), [](const Round& round) {
    return round.requested && round.verdict == Verdict::kOpen;
  });
}

bool World::compares(const Node& node) {
  return std::any_of(node.jobs.begin(), node.jobs.end(),
                     [](const Job& job) { return job.kind == Job::Kind::kCompare; });
}

bool World::would_accept(const Node& node, const Event& event) const {
  if (node.state.mode != Mode::kReady) return false;
  State copy = node.state;
  std::vector<Action> out;
  transition(copy, event, out);
  return std::none_of(out.begin(), out.end(),
                      [](const Action& a) { return std::holds_alternative<Refuse>(a); });
}

}  // namespace meshstage::explorer
