#include <meshstage/core/vault/vault.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/vault/adopt_impl.hpp>
#include <meshstage/core/vault/attach_impl.hpp>
#include <meshstage/core/vault/names_impl.hpp>
#include <meshstage/core/vault/stray_impl.hpp>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace meshstage {

Vault Vault::attach(VaultOptions options) {
  if (!is_valid_job_name(options.job)) {
    throw InvalidArgument("job name \"" + options.job.substr(0, 80) +
                          "\": 1 to 64 of A-Z a-z 0-9 . _ - are valid, but not \".\" or \"..\"");
  }
  if (options.rank < 0)
    throw InvalidArgument("rank " + std::to_string(options.rank) + ": ranks count from 0");
  FileSystem& fs = options.fs != nullptr ? *options.fs : real_file_system();
  options.fs = &fs;
  const auto directory = fs.stat(options.directory);
  if (!directory) fs.make_directories(options.directory);
  auto state = std::make_shared<detail::VaultState>(std::move(options), fs);
  detail::become_owner(*state);
  const MutexLock lock(state->mutex);
  detail::take_words(*state);
  detail::open_slots(*state);
  return Vault(std::move(state));
}

std::uint64_t Vault::highest_epoch(const VaultOptions& options) {
  FileSystem& fs = options.fs != nullptr ? *options.fs : real_file_system();
  const auto page = detail::ControlPage::open(
      fs, options.directory / detail::control_name(fs.process().uid, options.job, options.rank));
  return page ? std::max(page->epoch(), page->generation()) : 0;
}

Vault::Vault(std::shared_ptr<detail::VaultState> state) : state_(std::move(state)) {}
Vault::Vault(Vault&&) noexcept = default;
Vault& Vault::operator=(Vault&&) noexcept = default;
Vault::~Vault() = default;

const VaultOptions& Vault::options() const noexcept { return state_->options; }
std::uint64_t Vault::incarnation() const noexcept { return state_->incarnation; }
std::uint64_t Vault::epoch() const noexcept { return state_->epoch; }
bool Vault::taken_over() const noexcept { return state_->taken_over; }
void Vault::check_owned() const { state_->check_owned(); }

SlotInfo Vault::slot(SlotKey key) const {
  const MutexLock lock(state_->mutex);
  const auto at = state_->slots.find(key);
  return at == state_->slots.end() ? SlotInfo() : state_->info(key, *at->second);
}

std::vector<std::pair<SlotKey, SlotInfo>> Vault::slots() const {
  const MutexLock lock(state_->mutex);
  std::vector<std::pair<SlotKey, SlotInfo>> out;
  for (const auto& [key, slot] : state_->slots) out.emplace_back(key, state_->info(key, *slot));
  return out;
}

std::uint64_t Vault::max_generation() const {
  std::uint64_t highest = state_->control.generation();
  for (const auto& [key, info] : slots()) {
    highest =
        std::max({highest, info.image.identity.id.generation, info.image.identity.base.generation});
  }
  // A header's generation is in its control page, too.
  for (const int rank : detail::other_ranks(*state_)) {
    if (const auto page = detail::control_of(*state_, rank)) {
      highest = std::max(highest, page->generation());
    }
  }
  return highest;
}

void Vault::note_generation(std::uint64_t g) {
  state_->check_owned();
  state_->control.set_joined(state_->process.instance);
  state_->control.set_entered(g);
  state_->control.raise_generation(g);
}

WriteLease Vault::begin_write(SlotKey key, const ImageIdentity& identity, std::uint64_t bytes) {
  if (identity.job != state_->options.job || identity.rank != key.owner_rank ||
      !identity.id.exists()) {
    throw InvalidArgument("an image of " + to_string(identity) +
                          " does not belong into a slot of rank " + std::to_string(key.owner_rank) +
                          ", job \"" + state_->options.job + "\"");
  }
  WriteLease lease;
  {
    const MutexLock lock(state_->mutex);
    state_->check_owned();
    state_->check_free(key, *state_->ensure_slot(key));
    const auto slot = state_->ensure_slot_to_write(key);
    // From here on nobody else leases the slot. Room for a large image takes seconds, so it is made
    // without the mutex.
    slot->writing = true;
    lease.vault_ = state_;
    lease.slot_ = slot;
    lease.key_ = key;
    lease.identity_ = identity;
  }
  detail::Slot& slot = *lease.slot_;
  state_->check_growth(key, slot, bytes);
  {
    const MutexLock lock(state_->mutex);
    if (SlotInfo before = state_->info(key, slot); before.state == SlotState::kSealed) {
      lease.previous_ = std::move(before.image);
    }
    detail::SlotHeader header;
    header.state = SlotState::kWriting;
    header.image.identity = identity;
    header.image.image_bytes = bytes;
    state_->control.raise_generation(std::max(identity.id.generation, identity.base.generation));
    state_->begin(slot, header);
  }
  if (Mapping grown = state_->grow(key, slot, bytes); grown.valid()) {
    state_->page_locks.unlock(slot.pages);
    const MutexLock lock(state_->mutex);
    slot.mapping = std::move(grown);
  }
  state_->lock_pages(key, slot);
  lease.bytes_ = bytes;
  return lease;
}

ReadLease Vault::read(SlotKey key) {
  const MutexLock lock(state_->mutex);
  state_->check_owned();
  const auto at = state_->slots.find(key);
  SlotInfo info;
  if (at != state_->slots.end()) info = state_->info(key, *at->second);
  if (info.state != SlotState::kSealed || at->second->writing) {
    throw InvalidState(detail::describe(*state_, key) + " is " +
                       std::string(to_string(info.state)) + ", only a sealed one can be read" +
                       (info.damaged.empty() ? "" : " (" + info.damaged + ")"));
  }
  ReadLease lease;
  ++at->second->readers;
  lease.vault_ = state_;
  lease.slot_ = at->second;
  lease.key_ = key;
  lease.bytes_ = stored_bytes(key, state_->options.rank, info.image);
  lease.info_ = std::move(info.image);
  return lease;
}

void Vault::use_pinner(MemoryPinner& pinner, std::function<void(const std::string&)> warn) {
  state_->page_locks.use(pinner, std::move(warn));
}

void Vault::lock_pages(const ReadLease& lease) {
  if (lease.valid()) state_->lock_pages(lease.key_, *lease.slot_);
}

VaultPageLocks Vault::page_locks() const {
  const MutexLock lock(state_->mutex);
  VaultPageLocks locks{0, state_->page_locks.refused()};
  for (const auto& [key, slot] : state_->slots) {
    if (state_->page_locks.is_locked(slot->pages)) locks.bytes += slot->capacity();
  }
  return locks;
}

std::filesystem::path Vault::file_of(SlotKey key) const { return state_->slot_path(key); }

std::vector<SlotKey> Vault::adopt_older() {
  std::vector<SlotKey> filled;
  state_->check_owned();
  const VaultOptions& options = state_->options;
  for (const detail::OlderSlot& from : detail::older_slots(*state_)) {
    if (options.keeps_others && from.image.identity.world_size != options.world_size) continue;
    std::optional<SlotKey> to;
    {
      const MutexLock files(detail::lock_files_mutex());
      const MutexLock lock(state_->mutex);
      to = detail::place_for(*state_, from);
      if (!to) continue;
      if (detail::move_in(*state_, from, *to)) {
        filled.push_back(*to);
        continue;
      }
    }
    if (copy_in(from, *to)) filled.push_back(*to);
  }
  return filled;
}

bool Vault::copy_in(const detail::OlderSlot& from, SlotKey to) {
  const auto bytes = stored_bytes(from.key, state_->options.rank, from.image);
  try {
    const auto file = detail::open_private(state_->fs, from.path);
    const Mapping source(*file, detail::kHeaderBytes + bytes, MapAccess::kRead);
    WriteLease lease = begin_write(to, from.image.identity, bytes);
    fast_copy(lease.image(), source.bytes().subspan(detail::kHeaderBytes, bytes));
    lease.seal(from.image);
    return true;
  } catch (const OutOfMemory&) {
    // It stays where it is; another rank may have what this one lacks.
  } catch (const SystemError& e) {
    if (!detail::is_missing(e)) throw;
  }
  return false;
}

namespace {

/// Whether a slot of the present incarnation has that image, too.
bool is_in_slot(const detail::VaultState& state, const StraySlot& older)
    MESHSTAGE_REQUIRES(state.mutex) {
  for (const int index : {0, 1}) {
    const SlotKey key{older.key.owner_rank, index};
    const auto at = state.slots.find(key);
    if (at == state.slots.end()) continue;
    const SlotInfo info = state.info(key, *at->second);
    if (info.state == SlotState::kSealed && info.image.identity == older.image.identity)
      return true;
  }
  return false;
}

/// What left_in_older() returns.
std::vector<StraySlot> older_beside_slots(const detail::VaultState& state)
    MESHSTAGE_REQUIRES(state.mutex) {
  std::vector<StraySlot> left;
  if (!state.options.world_size) return left;
  for (StraySlot& slot : detail::mapped_older_slots(state)) {
    if (!is_in_slot(state, slot)) left.push_back(std::move(slot));
  }
  return left;
}

}  // namespace

std::vector<StraySlot> Vault::left_in_older() const {
  const MutexLock lock(state_->mutex);
  state_->check_owned();
  return older_beside_slots(*state_);
}

std::uint64_t Vault::bytes_left() const {
  const auto incarnations = detail::vaults_of(*state_, state_->control.entered());
  std::uint64_t bytes = 0;
  for (const auto& [name, path] : state_->files_of_job()) {
    const auto at = incarnations.find(name.rank);
    const bool present = at != incarnations.end() && name.incarnation == at->second;
    if (name.kind != detail::VaultFileKind::kSlot || present) continue;
    if (const auto stat = state_->fs.stat(path)) bytes += stat->size;
  }
  return bytes;
}

std::vector<StraySlot> Vault::take_strays(const StraySearch& search) {
  std::vector<StraySlot> slots;
  const MutexLock files(detail::lock_files_mutex());
  const MutexLock lock(state_->mutex);
  state_->check_owned();
  state_->strays.clear();
  const auto takers = detail::ranks_that_take(*state_, search);
  for (const int rank : detail::other_ranks(*state_)) {
    if (detail::taker_of(rank, takers, search) != state_->options.rank) continue;
    const auto leave_alone = [&](const Error& e) {
      search.warn("the vault of rank " + std::to_string(rank) + " in " +
                  state_->options.directory.native() + " is left alone: " + e.what());
    };
    try {
      auto stray = detail::take_stray(*state_, rank, search);
      if (!stray) continue;
      for (auto& slot : detail::mapped_older_slots(*stray->vault)) slots.push_back(std::move(slot));
      state_->strays.push_back(std::make_shared<detail::Stray>(std::move(*stray)));
    } catch (const InvalidState& e) {  // another user's, of another world, taken since
      leave_alone(e);
    } catch (const CorruptData& e) {
      leave_alone(e);
    }
  }
  return slots;
}

bool Vault::move_stray(const StraySlot& from, SlotKey to) {
  const ImageIdentity& identity = from.image.identity;
  const int rank = state_->options.rank;
  {
    const MutexLock files(detail::lock_files_mutex());
    const MutexLock lock(state_->mutex);
    state_->check_owned();
    const auto stray =
        std::find_if(state_->strays.begin(), state_->strays.end(),
                     [&](const auto& taken) { return taken->vault->options.rank == from.vault; });
    if (identity.rank != to.owner_rank || stray == state_->strays.end() ||
        stored_bytes(from.key, from.vault, from.image) != stored_bytes(to, rank, from.image)) {
      return false;
    }
    if (const auto at = state_->slots.find(to); at != state_->slots.end()) {
      state_->check_free(to, *at->second);
    }
    state_->control.raise_generation(std::max(identity.id.generation, identity.base.generation));
    if (!detail::move_in(*state_, **stray, from, to)) return false;
  }
  lock_pages(read(to));  // the lease keeps the slot from being written meanwhile
  return true;
}

std::uint64_t Vault::remove_strays_but(std::span<const ImageId> needed) {
  const MutexLock files(detail::lock_files_mutex());
  const MutexLock lock(state_->mutex);
  state_->check_owned();
  std::uint64_t freed = 0;
  for (const auto& stray : state_->strays) {
    if (!stray->newest_other.exists()) freed += detail::remove_all_but(*stray, needed);
  }
  return freed;
}

bool Vault::has_strays() const {
  const MutexLock lock(state_->mutex);
  return !state_->strays.empty();
}

std::uint64_t Vault::bytes_held() const {
  const MutexLock lock(state_->mutex);
  std::uint64_t bytes = 0;
  for (const auto& [key, slot] : state_->slots) bytes += slot->mapping.bytes().size();
  return bytes;
}

std::uint64_t Vault::bytes_held_by_generation(std::uint64_t most) const {
  const auto incarnations = detail::vaults_of(*state_, state_->control.entered());
  std::map<int, std::uint64_t> held;
  for (const auto& [name, path] : state_->files_of_job()) {
    const auto at = incarnations.find(name.rank);
    if (name.kind != detail::VaultFileKind::kSlot || at == incarnations.end()) continue;
    if (name.incarnation != at->second) continue;
    if (const auto stat = state_->fs.stat(path)) held[name.rank] += stat->size;
  }
  std::uint64_t sum = 0;
  for (const auto& [rank, bytes] : held) sum += std::min(bytes, most);
  return sum;
}

namespace {

/// Whether nobody holds the lock of this file, which this process does not own.
bool is_let_go(FileSystem& fs, const std::filesystem::path& path) {
  try {
    return detail::open_private(fs, path)->try_lock();
  } catch (const SystemError& e) {
    if (!detail::is_missing(e)) throw;
    return true;
  }
}

/// Removes the files of this job and rank below incarnation `below`, but not of those in `kept`:
/// slots, and lock and temporary files that nobody holds (`all`: also those that somebody does).
/// Not the own lock file, nor the control page. Returns the bytes freed.
std::uint64_t remove_files(const detail::VaultState& state, std::uint64_t below, bool all,
                           const std::set<std::uint64_t>& kept = {}) {
  using detail::VaultFileKind;
  std::uint64_t freed = 0;
  for (const auto& [name, path] : state.files()) {
    if (name.incarnation >= below || kept.contains(name.incarnation)) continue;
    if (name.kind == VaultFileKind::kSlot) {
      const auto stat = state.fs.stat(path);
      if (state.fs.unlink(path) && stat) freed += stat->size;
    } else if (name.kind != VaultFileKind::kControl && path != state.lock_path() &&
               (all || is_let_go(state.fs, path))) {
      state.fs.unlink(path);
    }
  }
  return freed;
}

}  // namespace

std::uint64_t Vault::free_superseded(ImageId recovered) {
  const MutexLock files(detail::lock_files_mutex());
  const MutexLock lock(state_->mutex);
  state_->check_owned();
  std::set<std::uint64_t> kept;
  for (const StraySlot& slot : older_beside_slots(*state_)) {
    if (slot.image.identity.id > recovered) kept.insert(slot.incarnation);
  }
  std::uint64_t freed = remove_files(*state_, state_->incarnation, false, kept);
  for (const auto& stray : state_->strays) {
    if (stray->newest_other <= recovered) freed += detail::remove(*stray, false);
  }
  return freed;
}

void Vault::remove_all() {
  const MutexLock files(detail::lock_files_mutex());
  const MutexLock lock(state_->mutex);
  state_->check_owned();
  for (const auto& [key, slot] : state_->slots) state_->check_free(key, *slot);
  for (const auto& stray : state_->strays) detail::remove(*stray, true);
  state_->strays.clear();
  // The own lock and the control page last: what is left of an interrupted removal is still found.
  // Owners of older incarnations that still live see the page they have mapped: they stay fenced.
  remove_files(*state_, state_->incarnation + 1, true);
  state_->slots.clear();
  state_->fs.unlink(state_->lock_path());
  state_->fs.unlink(state_->control_path());
}

}  // namespace meshstage
