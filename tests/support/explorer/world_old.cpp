#include "tests/support/explorer/world.hpp"
#include "tests/support/explorer/world_impl.hpp"

/// The images of an old job, which had one rank more, and files of a step that is cut anew.
namespace meshstage::explorer {

void World::begin_old() {
  const int old_world = bounds_->world + 1;
  store_generation_ = kOldStepId.generation;
  if (bounds_->old_rot) {
    old_files_ = (bit(old_world) - 1) & ~bit(0);
    old_damaged_ = bit(0);
  }
  for (int owner = 0; owner < old_world; ++owner) {
    const int at = owner < bounds_->world ? owner : 0;
    Node& node = nodes_[static_cast<std::size_t>(at)];
    if (owner == at && !bounds_->old_kept) {
      MemorySlot& slot = node.own[0];
      slot = {MemorySlot::Header::kSealed, kOldStepId, kNoImage, true, kOldStepId, owner};
      slot.old = true;
    } else {
      node.old_held |= bit(owner);
    }
    nodes_[static_cast<std::size_t>((at + 1) % bounds_->world)].old_held |= bit(owner);
  }
}

void World::claim_old(const Node& node, ImageId newer_than, FilesVerified& found) const {
  if (!bounds_->old_job) return;
  const int old_world = bounds_->world + 1;
  if (node.rank == 0) found.named = old_named();
  for (int owner = 0; owner < old_world; ++owner) {
    const bool reads = owner % bounds_->world == node.rank &&
                       !(bounds_->old_unclaimed && node.rank + 1 == bounds_->world);
    if (reads && newer_than < kOldestStepId && !bounds_->old_apart) {
      found.claims.push_back(
          {node.rank, owner, Place::kHeldFile, 0, old_world, kOldestStepId, {}, {}, {}});
    }
    if (newer_than >= kOldStepId) continue;
    if ((node.old_held & bit(owner)) != 0) {
      const Place place = bounds_->old_kept ? Place::kKept : Place::kStray;
      Claim claim{node.rank, owner, place, 0, old_world, kOldStepId, {}, {}, {}};
      claim.vault = old_world;
      found.claims.push_back(claim);
    }
    // On a disk of its own a rank reads every file.
    if ((reads || bounds_->old_apart) && (old_files_of(node) & bit(owner)) != 0) {
      found.claims.push_back(
          {node.rank, owner, Place::kHeldFile, 0, old_world, kOldStepId, {}, {}, {}});
    }
  }
}

OldPublished World::publish_own(Node& node, ImageId id) const {
  OldPublished result;
  for (const MemorySlot& slot : node.own) {
    if (slot.header != MemorySlot::Header::kSealed || !slot.whole || slot.id != id) continue;
    result.written = {node.rank};
    if (bounds_->old_kept) continue;  // it is read from its slot
    const File file{node.rank, id, slot.base, slot.lenders, slot.loan};
    const auto at = std::lower_bound(node.files.begin(), node.files.end(), file);
    if (at == node.files.end() || *at != file) node.files.insert(at, file);
  }
  return result;
}

bool World::lacks_image(const Node& node, ImageId id) const {
  if (bounds_->old_kept) {
    return std::none_of(node.own.begin(), node.own.end(), [&](const MemorySlot& slot) {
      return slot.header == MemorySlot::Header::kSealed && slot.whole && slot.id == id;
    });
  }
  Ranks found = 0;
  const auto look = [&](const std::vector<File>& files) {
    for (const File& file : files) {
      if (file.id == id) found |= bit(file.owner);
    }
  };
  for (const Node& each : nodes_) look(each.files);
  for (const LeftFiles& left : left_files_) look(left.files);
  return found != bit(bounds_->world) - 1;
}

OldPublished World::publish_old(Node& node, const PublishOld& action) {
  if (action.step.world_size == bounds_->world) return publish_own(node, action.step.id);
  if (bounds_->old_kept) return {"no room", {}};
  Ranks written = 0;
  for (const MemorySlot& slot : node.own) {
    if (slot.old && slot.header == MemorySlot::Header::kSealed && slot.whole &&
        slot.id == action.step.id) {
      written |= bit(slot.content_owner);
    }
  }
  written |= action.replicas ? node.old_held : old_own(node);
  (bounds_->old_apart ? node.old_files : old_files_) |= written;
  old_damaged_ &= ~written;
  OldPublished result;
  for (int owner = 0; owner <= bounds_->world; ++owner) {
    if ((written & bit(owner)) != 0) result.written.push_back(owner);
  }
  return result;
}

Ranks World::old_files_of(const Node& node) const {
  return bounds_->old_apart ? node.old_files : old_files_;
}

std::vector<OldStep> World::old_named() const {
  const int old_world = bounds_->world + 1;
  const Ranks files = old_files_of(nodes_.front()) | old_damaged_;
  std::vector<OldStep> named;
  if (!bounds_->old_apart) named.push_back({kOldestStepId, old_world});
  if (files == bit(old_world) - 1) named.push_back({kOldStepId, old_world});
  return named;
}

OldStep World::old_on_disk() const {
  Ranks files = 0;
  for (const Node& node : nodes_) {
    files |= old_files_of(node);
    if (bounds_->old_kept && !node.zombie) files |= node.old_held;
  }
  return old_step_of(files);
}

OldStep World::old_step_of(Ranks files) const {
  const int old_world = bounds_->world + 1;
  if (bounds_->old_memory && files == bit(old_world) - 1) return {kOldStepId, old_world};
  return bounds_->old_apart ? OldStep{} : OldStep{kOldestStepId, old_world};
}

Ranks World::old_own(const Node& node) const {
  Ranks own = node.rank == 0 ? bit(bounds_->world) : 0;  // the vault that was left there
  if (bounds_->old_kept) own |= bit(node.rank);
  return node.old_held & own;
}

void World::overwrite_old(Node& node, bool own) const {
  if (!bounds_->old_kept) return;
  if (own && !bounds_->rules.keep_old) node.old_held &= ~bit(node.rank);
  const bool keeps = bounds_->rules.keep_old && bounds_->rules.keep_old_replicas;
  if (!own && !keeps) node.old_held = old_own(node);
}

/// While no step of this job is complete.
void World::check_old() {
  if (!beyond_ && !old_covered(-1) && old_on_disk().id != kOldStepId) {
    return wrong("the old job's step is lost, and no step of this one is complete");
  }
  const bool whole = left_.host_losses == bounds_->host_losses &&
                     left_.losses_beyond == bounds_->losses_beyond &&
                     left_.zombies == bounds_->zombies;
  for (int host = 0; bounds_->old_kept && whole && bounds_->world > 1 && host < host_count();
       ++host) {
    if (!old_covered(host)) {
      wrong("the loss of host " + std::to_string(host) +
            " alone would lose the old job's step, and no step of this one is complete");
    }
  }
}

bool World::old_covered(int without) const {
  Ranks found = old_files_;
  for (const Node& node : nodes_) {
    if (node.host == without) continue;
    found |= node.old_files;
    if (node.zombie) continue;
    found |= node.old_held;
    for (const MemorySlot& slot : node.own) {
      if (slot.old && slot.header == MemorySlot::Header::kSealed && slot.whole) {
        found |= bit(slot.content_owner);
      }
    }
  }
  return found == bit(bounds_->world + 1) - 1;
}

}  // namespace meshstage::explorer
