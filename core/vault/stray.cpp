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
  const auto owner = vault.control.owner(newest);
  if (!owner || owner->instance != vault.control.joined()) return std::nullopt;
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

}  // namespace

std::vector<int> other_ranks(const VaultState& mine) {
  std::set<int> ranks;
  for (const auto& [name, path] : mine.files_of_job()) {
    if (name.kind == VaultFileKind::kControl) ranks.insert(name.rank);
  }
  ranks.erase(mine.options.rank);
  return {ranks.begin(), ranks.end()};
}

std::optional<Stray> take_stray(const VaultState& mine, int rank, std::uint64_t generation,
                                int world_size, bool any_world) {
  VaultOptions options = mine.options;
  options.rank = rank;
  Stray stray;
  stray.vault = std::make_shared<VaultState>(std::move(options), mine.fs);
  VaultState& vault = *stray.vault;
  vault.incarnation = kAboveAll;
  auto control = ControlPage::open(vault.fs, vault.control_path());
  if (!control) return std::nullopt;
  vault.control = std::move(*control);
  if (vault.control.generation() >= generation) return std::nullopt;
  stray.newest_other = newest_of_others(vault, world_size, any_world);
  // Its lock files must not be opened: closing them would give the locks away.
  if (vault.control.owned_by(vault.process)) return std::nullopt;
  vault.epoch = vault.control.epoch() + 1;
  if (!vault.control.raise_generation(generation)) return std::nullopt;
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

std::vector<StraySlot> slots_of(const Stray& stray) {
  const VaultState& vault = *stray.vault;
  std::vector<StraySlot> slots;
  for (const OlderSlot& found : older_slots(vault)) {
    const auto bytes = stored_bytes(found.key, vault.options.rank, found.image);
    try {
      const auto file = open_private(vault.fs, found.path);
      const auto mapping =
          std::make_shared<const Mapping>(*file, kHeaderBytes + bytes, MapAccess::kRead);
      slots.push_back({vault.options.rank, found.key, found.image,
                       mapping->bytes().subspan(kHeaderBytes, bytes), mapping});
    } catch (const SystemError& e) {
      if (!is_missing(e)) throw;
    }
  }
  return slots;
}

std::uint64_t remove(Stray& stray, bool all) {
  const VaultState& vault = *stray.vault;
  if (vault.control.epoch() != vault.epoch) {  // a newcomer's by now
    stray.locks.clear();
    return 0;
  }
  const auto held = [&](std::uint64_t incarnation) {
    return std::any_of(stray.locks.begin(), stray.locks.end(),
                       [&](const Stray::Lock& lock) { return lock.incarnation == incarnation; });
  };
  std::uint64_t freed = 0;
  for (const auto& [name, path] : vault.files()) {
    if (name.kind == VaultFileKind::kControl) continue;
    const bool slot = name.kind == VaultFileKind::kSlot;
    if (!all && !(slot && held(name.incarnation))) continue;
    const auto stat = vault.fs.stat(path);
    if (vault.fs.unlink(path) && stat && slot) freed += stat->size;
  }
  for (const Stray::Lock& lock : stray.locks) vault.fs.unlink(lock.path);
  stray.locks.clear();
  if (all) vault.fs.unlink(vault.control_path());
  return freed;
}

}  // namespace meshstage::detail
