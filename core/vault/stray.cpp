// A job may come back with its ranks on other hosts, and then the vault of a rank lies where the
// rank does not sit. Such a vault is *stray*. A rank that sits beside it takes it, claims what is
// sealed there and sends it to where it belongs.
//
// A vault is stray for generation g if its control page has seen no generation from g on: each rank
// of g writes g into the page of its own vault before anybody takes a stray. The taker writes g,
// too, by compare-and-swap, so one process takes each. A process that attached the vault and has
// been in no generation yet is a newcomer, which is on its way into the next one: its vault is left
// alone. The epoch is raised by one compare-and-swap from the value that was read first: so either
// the taker sees that a newcomer has attached, or the newcomer takes the vault in a higher epoch.
//
// Locks that are free are held until the strays are removed, so nobody writes there meanwhile.
// Under a lock that is held by somebody (a stopped process) nothing is written but the words, as
// for older incarnations of the own vault: attach.cpp.
#include <meshstage/core/vault/stray_impl.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/adopt_impl.hpp>
#include <meshstage/core/vault/attach_impl.hpp>
#include <meshstage/core/vault/names_impl.hpp>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <set>
#include <utility>

namespace meshstage::detail {

namespace {

/// Above every incarnation: all are older ones.
constexpr std::uint64_t kAboveAll = std::numeric_limits<std::uint64_t>::max();

/// Nothing if the vault's newest owner lives and has been in no generation.
std::optional<std::vector<Stray::Lock>> take_locks(const VaultState& vault) {
  std::vector<Stray::Lock> locks;
  std::uint64_t newest = 0;
  for (const auto& [name, path] : vault.files()) {
    if (name.kind != VaultFileKind::kLock) continue;
    newest = std::max(newest, name.incarnation);
    try {
      auto lock = open_private(vault.fs, path);
      if (!lock->try_lock()) continue;
      locks.push_back({name.incarnation, path, std::move(lock)});
    } catch (const SystemError& e) {
      if (!is_missing(e)) throw;
    }
  }
  const bool free = std::any_of(locks.begin(), locks.end(), [&](const Stray::Lock& lock) {
    return lock.incarnation == newest;
  });
  if (newest == 0 || free) return locks;
  // An owner that let the vault go has no instance: then another rank holds the lock, which took
  // the vault in an older generation.
  const auto owner = vault.control.owner(newest);
  const bool joined = owner && (owner->instance == 0 || owner->instance == vault.control.joined());
  if (!joined) return std::nullopt;
  return locks;
}

/// The newest sealed image of that vault that is not of `world_size` ranks; kNoImage if there is
/// none. Throws InvalidState if there is one, unless `any_world`.
ImageId newest_of_others(const VaultState& vault, int world_size, bool any_world) {
  ImageId newest;
  for (const auto& [name, path] : vault.files()) {
    if (name.kind != VaultFileKind::kSlot) continue;
    try {
      const SlotInfo info = read_header(*open_private(vault.fs, path));
      const int theirs = info.image.identity.world_size;
      if (info.state != SlotState::kSealed || theirs == world_size) continue;
      if (!any_world) {
        throw InvalidState("it has images of " + std::to_string(theirs) +
                           " ranks; meshstage clean removes it");
      }
      newest = std::max(newest, info.image.identity.id);
    } catch (const SystemError& e) {
      if (!is_missing(e)) throw;
    }
  }
  return newest;
}

bool holds_lock(const Stray& stray, std::uint64_t incarnation) {
  return std::any_of(stray.locks.begin(), stray.locks.end(),
                     [&](const Stray::Lock& lock) { return lock.incarnation == incarnation; });
}

}  // namespace

std::vector<int> other_ranks(const VaultState& mine) {
  std::set<int> ranks;
  for (const auto& [name, path] : mine.files_of_job()) {
    if (name.kind == VaultFileKind::kControl) ranks.insert(name.rank);
  }
  ranks.erase(mine.options.rank);
  return {ranks.begin(), ranks.end()};
}

std::optional<ControlPage> control_of(const VaultState& mine, int rank) {
  try {
    return ControlPage::open(mine.fs,
                             mine.path_of(control_name(mine.process.uid, mine.options.job, rank)));
  } catch (const InvalidState&) {  // another user's file under a name of ours
  } catch (const CorruptData&) {   // its own rank's attach() says so
  } catch (const SystemError& e) {
    if (e.error_number() != EACCES) throw;  // another user's, too
  }
  return std::nullopt;
}

std::map<int, std::uint64_t> vaults_of(const VaultState& mine, std::uint64_t generation) {
  std::map<int, std::uint64_t> incarnations{{mine.options.rank, mine.incarnation}};
  for (const int rank : other_ranks(mine)) {
    const auto page = control_of(mine, rank);
    if (page && page->entered() == generation) incarnations.emplace(rank, page->newest());
  }
  return incarnations;
}

std::vector<int> ranks_that_take(const VaultState& mine, const StraySearch& search) {
  if (!search.needs) return {mine.options.rank};
  std::vector<int> takers;
  for (const auto& [rank, incarnation] : vaults_of(mine, search.generation)) takers.push_back(rank);
  return takers;
}

int taker_of(int rank, std::span<const int> takers, const StraySearch& search) {
  const auto in_need = std::find_if(takers.begin(), takers.end(), [&](int taker) {
    return search.needs && search.needs(taker, rank);
  });
  return in_need != takers.end() ? *in_need
                                 : takers[static_cast<std::size_t>(rank) % takers.size()];
}

std::optional<Stray> take_stray(const VaultState& mine, int rank, const StraySearch& search) {
  VaultOptions options = mine.options;
  options.rank = rank;
  Stray stray;
  stray.vault = std::make_shared<VaultState>(std::move(options), mine.fs);
  VaultState& vault = *stray.vault;
  vault.incarnation = kAboveAll;
  auto control = ControlPage::open(vault.fs, vault.control_path());
  if (!control) return std::nullopt;
  vault.control = std::move(*control);
  if (vault.control.generation() >= search.generation) return std::nullopt;
  stray.newest_other = newest_of_others(vault, search.world_size, search.any_world);
  // Its lock files must not be opened: closing them would give the locks away.
  if (vault.control.owned_by(vault.process)) return std::nullopt;
  vault.epoch = vault.control.epoch() + 1;
  if (!vault.control.raise_generation(search.generation)) return std::nullopt;
  auto locks = take_locks(vault);
  if (!locks || !vault.control.raise_epoch(vault.epoch)) return std::nullopt;
  stray.locks = std::move(*locks);
  try {
    take_words(vault);
  } catch (const InvalidState&) {
    return std::nullopt;  // a newcomer took it in a higher epoch
  }
  return stray;
}

std::vector<StraySlot> mapped_older_slots(const VaultState& vault) {
  std::vector<StraySlot> slots;
  for (const OlderSlot& found : older_slots(vault)) {
    const auto bytes = stored_bytes(found.key, vault.options.rank, found.image);
    try {
      const auto file = open_private(vault.fs, found.path);
      const auto mapping =
          std::make_shared<const Mapping>(*file, kHeaderBytes + bytes, MapAccess::kRead);
      slots.push_back({vault.options.rank, found.key, found.image,
                       mapping->bytes().subspan(kHeaderBytes, bytes), mapping, found.incarnation,
                       found.path});
    } catch (const SystemError& e) {
      if (!is_missing(e)) throw;
    }
  }
  return slots;
}

bool move_in(VaultState& mine, const Stray& stray, const StraySlot& from, SlotKey to) {
  if (!holds_lock(stray, from.incarnation)) return false;
  const auto old_path = mine.path_of(
      slot_name(mine.process.uid, mine.options.job, from.vault, from.incarnation, from.key));
  const auto path = mine.slot_path(to);
  const auto there = mine.fs.stat(old_path);
  if (!there)
    return false;  // it has become a slot of this vault already, and was overwritten since
  const auto target = mine.fs.stat(path);
  const bool begun = target && target->inode == there->inode;  // a move that was cut off half-way
  if (target && !begun) {
    // As for any image: if this process is fenced, nothing of its vault changes.
    SlotHeader header;
    header.state = SlotState::kWriting;
    header.image.identity = from.image.identity;
    mine.begin(*mine.ensure_slot_to_write(to), header);
  }
  mine.forget_slot(to);
  if (!begun) {
    mine.fs.unlink(path);
    mine.fs.link(old_path, path);
  }
  try {
    // From here on whoever takes this vault finds the slot here, so it may go there.
    const SlotInfo info = mine.info(to, *mine.ensure_slot(to));
    mine.check_owned();
    if (info.state != SlotState::kSealed || info.image != from.image) {
      throw make_error<CorruptData>(describe(mine, to) + " is not what was moved there",
                                    mine.options.rank);
    }
  } catch (const Error&) {
    mine.forget_slot(to);
    mine.fs.unlink(path);
    throw;
  }
  mine.fs.unlink(old_path);
  return true;
}

std::uint64_t remove_all_but(const Stray& stray, std::span<const ImageId> needed) {
  const VaultState& vault = *stray.vault;
  std::uint64_t freed = 0;
  if (vault.control.epoch() != vault.epoch) return freed;  // a newcomer's by now
  const auto is_needed = [&](const std::filesystem::path& path) {
    const SlotInfo info = read_header(*open_private(vault.fs, path));
    return info.state == SlotState::kSealed &&
           std::find(needed.begin(), needed.end(), info.image.identity.id) != needed.end();
  };
  for (const auto& [name, path] : vault.files()) {
    if (name.kind != VaultFileKind::kSlot || !holds_lock(stray, name.incarnation)) continue;
    try {
      const auto stat = vault.fs.stat(path);
      if (stat && !is_needed(path) && vault.fs.unlink(path)) freed += stat->size;
    } catch (const SystemError& e) {
      if (!is_missing(e)) throw;
    }
  }
  return freed;
}

std::uint64_t remove(Stray& stray, bool all) {
  const VaultState& vault = *stray.vault;
  if (vault.control.epoch() != vault.epoch) {  // a newcomer's by now
    stray.locks.clear();
    return 0;
  }
  std::uint64_t freed = 0;
  for (const auto& [name, path] : vault.files()) {
    if (name.kind == VaultFileKind::kControl) continue;
    const bool slot = name.kind == VaultFileKind::kSlot;
    if (!all && !(slot && holds_lock(stray, name.incarnation))) continue;
    const auto stat = vault.fs.stat(path);
    if (vault.fs.unlink(path) && stat && slot) freed += stat->size;
  }
  for (const Stray::Lock& lock : stray.locks) vault.fs.unlink(lock.path);
  stray.locks.clear();
  if (all) vault.fs.unlink(vault.control_path());
  return freed;
}

}  // namespace meshstage::detail
