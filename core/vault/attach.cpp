// Becoming the owner of a vault.
//
// An incarnation exists once its lock file has its name. The file is made under a temporary name,
// locked, and then linked to its name, which fails if that exists: so no incarnation is ever seen
// unlocked before its first owner died, and of two processes that make the same one only one
// succeeds. Taking over is locking the file of the newest incarnation: the kernel gives the lock to
// one process. The file may have been removed, or a newer incarnation made, between looking and
// locking; both are looked at again afterwards, and it starts over.
//
// With the lock the owner raises the vault's epoch, then the epoch in the word of every slot file,
// of older incarnations too, and only then reads a header. From then on no older owner begins or
// seals a slot, whatever it had looked at before it was stopped: core/vault/README.md.
//
// Record locks do not exclude threads of one process from each other, and a process that opens and
// closes a lock file it owns loses the lock. So lock_files_mutex() is held meanwhile, and the
// control page is asked first whether this very process owns an incarnation already: then attaching
// is refused.
#include <meshstage/core/vault/attach_impl.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/names_impl.hpp>

#include <algorithm>
#include <cerrno>

namespace meshstage::detail {

namespace {

/// Each round that is lost was won by another process.
constexpr int kRounds = 100;

std::string vault_name(const VaultState& state) {
  return "the vault of job \"" + state.options.job + "\", rank " +
         std::to_string(state.options.rank) + " in " + state.options.directory.native();
}

std::uint64_t newest_incarnation(const VaultState& state) {
  std::uint64_t newest = 0;
  for (const auto& [name, path] : state.files()) {
    if (name.kind == VaultFileKind::kLock) newest = std::max(newest, name.incarnation);
  }
  return newest;
}

enum class Outcome : std::uint8_t { kMine, kOwnerLives, kLookAgain };

Outcome take_over(VaultState& state, std::uint64_t incarnation) {
  std::unique_ptr<File> file;
  const auto path = state.lock_path(incarnation);
  try {
    file = open_private(state.fs, path);
  } catch (const SystemError& e) {
    if (is_missing(e)) return Outcome::kLookAgain;
    throw;
  }
  if (!file->try_lock()) return Outcome::kOwnerLives;
  const auto named = state.fs.stat(path);
  const std::uint64_t inode = file->stat().inode;
  if (!named || named->inode != inode || newest_incarnation(state) != incarnation)
    return Outcome::kLookAgain;
  state.lock_file = std::move(file);
  state.lock_inode = inode;
  return Outcome::kMine;
}

Outcome make(VaultState& state, std::uint64_t incarnation) {
  const auto path = state.lock_path(incarnation);
  const auto temporary = temporary_path(path, state.process);
  state.fs.unlink(temporary);  // left by an attempt of ours that failed half-way
  auto file = state.fs.open(temporary, OpenMode::kCreateExclusive);
  bool linked = false;
  try {
    if (!file->try_lock()) throw SystemError("fcntl F_SETLK", temporary.native(), EAGAIN);
    const std::uint64_t inode = file->stat().inode;
    state.fs.link(temporary, path);
    linked = true;
    state.fs.unlink(temporary);
    state.lock_file = std::move(file);
    state.lock_inode = inode;
    return Outcome::kMine;
  } catch (const SystemError& e) {
    state.fs.unlink(temporary);
    if (linked) state.fs.unlink(path);
    // Somebody else made it first, or took our temporary file for a dead attempt's.
    if (!linked && (e.error_number() == EEXIST || is_missing(e))) return Outcome::kLookAgain;
    throw;
  }
}

/// Whether a slot of that incarnation has an image that stays where it is: see
/// VaultOptions::keeps_others. The caller holds the incarnation's lock, so no owner writes there.
bool keeps_images_of(const VaultState& state, std::uint64_t incarnation) {
  const auto world_size = state.options.world_size;
  if (!world_size || !state.options.keeps_others) return false;
  const auto keeps = [&](const VaultFile& file) {
    if (file.name.kind != VaultFileKind::kSlot || file.name.incarnation != incarnation)
      return false;
    try {
      const SlotInfo info = read_header(*open_private(state.fs, file.path));
      return info.state == SlotState::kSealed && info.image.identity.world_size != *world_size;
    } catch (const SystemError& e) {
      if (!is_missing(e)) throw;
      return false;
    }
  };
  const auto files = state.files();
  return std::any_of(files.begin(), files.end(), keeps);
}

[[noreturn]] void throw_taken(const VaultState& state) {
  throw make_error<Fenced>(
      vault_name(state) + " was taken in epoch " + std::to_string(state.control.epoch()) +
          "; this process comes with epoch " + std::to_string(state.options.epoch),
      state.options.rank);
}

/// False if somebody took the vault in this epoch or a higher one.
bool take_epoch(VaultState& state) {
  if (state.options.epoch != 0) {
    state.epoch = state.options.epoch;
    return state.control.raise_epoch(state.epoch);
  }
  do {
    state.epoch = state.control.epoch() + 1;
  } while (!state.control.raise_epoch(state.epoch));
  return true;
}

}  // namespace

void become_owner(VaultState& state) {
  const MutexLock lock(lock_files_mutex());
  const VaultOptions& options = state.options;
  state.control = ControlPage::open_or_create(state.fs, state.control_path());
  if (const auto mine = state.control.owned_by(state.process)) {
    throw make_error<InvalidState>(
        vault_name(state) + " is attached already in this process (incarnation " +
            std::to_string(mine->incarnation) +
            "): destroy that Vault and its leases first, or use another job name",
        options.rank);
  }
  if (options.epoch > kLastEpoch) {
    throw InvalidArgument("epoch " + std::to_string(options.epoch) + " is higher than any can be");
  }
  for (int round = 0; round < kRounds; ++round) {
    if (options.epoch != 0 && state.control.epoch() >= options.epoch) throw_taken(state);
    const std::uint64_t newest = newest_incarnation(state);
    Outcome outcome = newest == 0 ? Outcome::kOwnerLives : take_over(state, newest);
    std::unique_ptr<File> left;  // the lock of an incarnation that stays as it is
    if (outcome == Outcome::kMine && keeps_images_of(state, newest)) {
      left = std::move(state.lock_file);
      outcome = Outcome::kOwnerLives;
    }
    state.taken_over = outcome == Outcome::kMine;
    state.incarnation = newest;
    if (outcome == Outcome::kOwnerLives) {
      state.incarnation = std::max(newest, state.control.newest()) + 1;
      outcome = make(state, state.incarnation);
    }
    if (outcome == Outcome::kMine) {
      if (!take_epoch(state)) {
        if (!state.taken_over) state.fs.unlink(state.lock_path(state.incarnation));
        state.lock_file.reset();
        throw_taken(state);
      }
      state.control.set_owner(
          {state.incarnation, state.process.pid, state.process.start_time, state.process.instance});
      state.control.raise_newest(state.incarnation);
      return;
    }
  }
  throw make_error<InvalidState>(
      vault_name(state) + " keeps being taken by other processes: is the job started twice?",
      options.rank);
}

void take_words(const VaultState& state) {
  for (const auto& [name, path] : state.files()) {
    if (name.kind != VaultFileKind::kSlot) continue;
    try {
      const auto slot = open_private(state.fs, path);
      // A shorter one is being made: its owner looks at the vault's epoch afterwards.
      if (slot->stat().size < kHeaderBytes) continue;
      const Mapping page(*slot, kHeaderBytes, MapAccess::kReadWrite);
      state.take_word(page.bytes());
    } catch (const SystemError& e) {
      if (!is_missing(e)) throw;  // an older owner's, removed meanwhile
    }
  }
}

void open_slots(VaultState& state) {
  for (const auto& [name, path] : state.files()) {
    if (name.kind == VaultFileKind::kSlot && name.incarnation == state.incarnation) {
      (void)state.ensure_slot(name.slot);
    }
  }
}

}  // namespace meshstage::detail
