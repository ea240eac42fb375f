#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/first_touch.hpp>
#include <meshstage/core/memory/room.hpp>
#include <meshstage/core/vault/names_impl.hpp>
#include <meshstage/core/vault/state_impl.hpp>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace meshstage::detail {

namespace {

constexpr std::uint64_t kPage = 4096;
/// No image is larger; keeps sums of sizes far from wrapping.
constexpr std::uint64_t kMaxImageBytes = std::uint64_t{1} << 50U;

/// A full file system, a quota, or `ulimit -f`.
bool is_no_room(const SystemError& e) {
  const int error = e.error_number();
  return error == ENOSPC || error == ENOMEM || error == EDQUOT || error == EFBIG;
}

std::uint64_t file_bytes_for(std::uint64_t bytes) {
  return kHeaderBytes + (bytes + kPage - 1) / kPage * kPage;
}

}  // namespace

Mutex& lock_files_mutex() {
  static Mutex mutex;  // of the process, as the locks it orders are
  return mutex;
}

std::string describe(const VaultState& state, SlotKey key) {
  const bool own = key.owner_rank == state.options.rank;
  return "slot " + (own ? "own" : "w" + std::to_string(key.owner_rank) + "-") +
         std::to_string(key.index) + " of job \"" + state.options.job + "\", rank " +
         std::to_string(state.options.rank);
}

VaultState::~VaultState() {
  if (!lock_file || in_forked_child()) return;  // never owned, or a forked child's copy
  // First the entry, then the lock (with the file), with no attach() of this process in between.
  const MutexLock lock(lock_files_mutex());
  if (const auto entry = control.owner(incarnation); entry && entry->instance == process.instance) {
    control.set_owner({incarnation, process.pid, process.start_time, 0});
  }
  lock_file.reset();
}

std::filesystem::path VaultState::slot_path(SlotKey key) const {
  return path_of(slot_name(process.uid, options.job, options.rank, incarnation, key));
}

std::filesystem::path VaultState::lock_path(std::uint64_t of) const {
  return path_of(lock_name(process.uid, options.job, options.rank, of));
}

std::filesystem::path VaultState::control_path() const {
  return path_of(control_name(process.uid, options.job, options.rank));
}

std::vector<VaultFile> VaultState::files() const {
  auto found = files_of_job();
  std::erase_if(found, [&](const VaultFile& file) { return file.name.rank != options.rank; });
  return found;
}

std::vector<VaultFile> VaultState::files_of_job() const {
  std::vector<VaultFile> found;
  for (const auto& file : fs.list(options.directory)) {
    auto name = parse_vault_name(file);
    if (name && name->uid == process.uid && name->job == options.job) {
      found.push_back({std::move(*name), path_of(file)});
    }
  }
  return found;
}

void VaultState::check_owned() const {
  if (in_forked_child()) {
    throw InvalidState("the vault of job \"" + options.job + "\", rank " +
                       std::to_string(options.rank) + " belongs to process " +
                       std::to_string(process.pid) + "; a forked child cannot use it");
  }
  if (const std::uint64_t newest = control.newest(); newest > incarnation) {
    const auto owner = control.owner(newest);
    throw make_error<Fenced>("incarnation " + std::to_string(incarnation) + " is superseded by " +
                                 std::to_string(newest) + ", pid " +
                                 (owner ? std::to_string(owner->pid) : "unknown") + " (job \"" +
                                 options.job + "\", rank " + std::to_string(options.rank) + " in " +
                                 options.directory.native() + ")",
                             options.rank);
  }
  if (const std::uint64_t newest = control.epoch(); newest > epoch) {
    throw make_error<Fenced>(
        "the vault of job \"" + options.job + "\", rank " + std::to_string(options.rank) + " in " +
            options.directory.native() + " was taken in epoch " + std::to_string(newest) +
            ", this process took it in epoch " + std::to_string(epoch),
        options.rank);
  }
  if (lock_inode == 0) return;  // a stray vault: taken, not owned
  const auto there = fs.stat(lock_path());
  if (!there || there->inode != lock_inode) {
    throw make_error<InvalidState>("the vault of job \"" + options.job + "\", rank " +
                                       std::to_string(options.rank) + " in " +
                                       options.directory.native() + " was removed",
                                   options.rank);
  }
}

SlotInfo VaultState::info(SlotKey key, const Slot& slot) const {
  SlotInfo info = decode_header(slot.mapping.bytes().first<kHeaderBytes>());
  info.capacity = slot.capacity();
  const ImageIdentity& identity = info.image.identity;
  const auto distrust = [&](std::string why) {
    info.state = SlotState::kEmpty;
    info.image = {};
    info.damaged = std::move(why);
  };
  if (info.state == SlotState::kEmpty) return info;
  // The word may have a higher epoch: another process took this vault since, or the vault from
  // which the slot was moved.
  if (const SlotWord word = load_word(slot.mapping.bytes()); word.epoch < epoch) {
    distrust("the slot's word is of epoch " + std::to_string(word.epoch) + ", the vault's is " +
             std::to_string(control.epoch()));
    return info;
  }
  // Begun, and its owner died before the header was there.
  if (info.state == SlotState::kWriting && identity.job.empty()) return info;
  if (identity.job != options.job || identity.rank != key.owner_rank) {
    distrust("the header is of " + to_string(identity));
  } else if (info.state == SlotState::kSealed) {
    if (!has_sound_sizes(info.image) ||
        stored_bytes(key, options.rank, info.image) > info.capacity) {
      distrust("the header's image of " + std::to_string(info.image.image_bytes) +
               " bytes does not fit the slot");
    }
  }
  return info;
}

void VaultState::write_page(const Slot& slot, const SlotHeader& header) const {
  SlotHeader signed_header = header;
  signed_header.writer_pid = process.pid;
  signed_header.writer_start_time = process.start_time;
  const HeaderPage page = encode_header(signed_header);
  constexpr std::size_t kBehindWord = kWordAt + sizeof(std::uint64_t);
  auto* const to = slot.mapping.bytes().data();
  // The fences keep the page's stores after all that came before (SEALED) and before all that
  // comes after (WRITING), streaming stores included. A death half-way leaves a page that its
  // digest disowns.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::memcpy(to, page.data(), kWordAt);
  std::memcpy(to + kBehindWord, page.data() + kBehindWord, page.size() - kBehindWord);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void VaultState::begin(const Slot& slot, const SlotHeader& header) const {
  SlotWord there = load_word(slot.mapping.bytes());
  while (true) {
    auto wanted = begun(there, epoch);
    if (!wanted) {
      // A taker raises the vault's epoch before the words': so this throws, or the word was raised
      // a moment ago by a taker of the vault from which the slot was moved.
      check_owned();
      wanted = SlotWord{SlotState::kWriting, epoch};
    }
    if (options.observer) options.observer("slot-word-loaded");
    if (swap_word(slot.mapping.bytes(), there, *wanted)) break;
  }
  write_page(slot, header);
}

void VaultState::seal(SlotKey key, const Slot& slot, const SlotHeader& header) const {
  write_page(slot, header);
  SlotWord there = load_word(slot.mapping.bytes());
  const auto wanted = sealed(there, epoch);
  if (options.observer) options.observer("slot-word-loaded");
  if (wanted && swap_word(slot.mapping.bytes(), there, *wanted)) return;
  check_owned();
  throw InvalidState(describe(*this, key) + " was changed by another process while it was written");
}

void VaultState::take_word(std::span<std::byte> page) const {
  SlotWord there = load_word(page);
  while (there.epoch != epoch) {
    const auto wanted = taken(there, epoch);
    if (!wanted) {
      // A taker raises the vault's epoch before the words': so this throws, or the slot was moved
      // from or to another vault, which was taken in a higher epoch. Then the word stays.
      return check_owned();
    }
    if (swap_word(page, there, *wanted)) return;
  }
}

std::shared_ptr<Slot> VaultState::ensure_slot(SlotKey key) {
  if (key.owner_rank < 0 || key.index < 0 || key.index > 1) {
    throw InvalidArgument("there is no slot " + std::to_string(key.index) + " of rank " +
                          std::to_string(key.owner_rank) +
                          ": ranks count from 0, slots are 0 and 1");
  }
  if (const auto at = slots.find(key); at != slots.end()) return at->second;
  auto slot = std::make_shared<Slot>();
  const auto path = slot_path(key);
  try {
    slot->file = fs.open(path, OpenMode::kCreateExclusive);
  } catch (const SystemError& e) {
    if (e.error_number() != EEXIST) throw;
    slot->file =
        open_private(fs, path);  // an attempt of ours that failed half-way, or a dead owner's
  }
  try {
    if (slot->file->stat().size < kHeaderBytes) slot->file->reserve(kHeaderBytes);
  } catch (const SystemError& e) {
    if (!is_no_room(e)) throw;
    throw_no_room({describe(*this, key), kHeaderBytes, 1}, read_room_limits(fs, options.directory),
                  e.what());
  }
  slot->mapping = Mapping(*slot->file, slot->file->stat().size, MapAccess::kReadWrite);
  take_word(slot->mapping.bytes());
  // Whoever takes the vault raises its epoch, then takes the words of the files that are there. So
  // it has found this file, or is found here.
  check_owned();
  slots.emplace(key, slot);
  return slot;
}

std::shared_ptr<Slot> VaultState::ensure_slot_to_write(SlotKey key) {
  auto slot = ensure_slot(key);
  const bool alone =
      slot->file->stat().links <= 1 && load_word(slot->mapping.bytes()).epoch == epoch;
  if (alone) return slot;
  check_owned();
  slot.reset();
  forget_slot(key);
  fs.unlink(slot_path(key));
  return ensure_slot(key);
}

void VaultState::forget_slot(SlotKey key) {
  const auto at = slots.find(key);
  if (at == slots.end()) return;
  page_locks.unlock(at->second->pages);
  slots.erase(at);
}

void VaultState::check_free(SlotKey key, const Slot& slot) const {
  if (slot.writing)
    throw InvalidState(describe(*this, key) + " is being written: seal or drop that lease first");
  if (slot.readers != 0) {
    throw InvalidState(describe(*this, key) + " has " + std::to_string(slot.readers) +
                       " reader(s): release their leases first");
  }
}

/// For an error, so it throws none of its own: of the job's other vaults in the directory, and of
/// older incarnations of this one.
std::string VaultState::what_holds_room() const {
  std::uint64_t held = 0;
  try {
    for (const auto& [name, path] : files_of_job()) {
      const bool own = name.rank == options.rank && name.incarnation == incarnation;
      if (name.kind != VaultFileKind::kSlot || own) continue;
      if (const auto stat = fs.stat(path)) held += stat->size;
    }
  } catch (const SystemError&) {
    return {};
  }
  if (held == 0) return {};
  return "; " + std::to_string(held) +
         " bytes there are slots of the job's other ranks and of earlier processes; earlier ones "
         "go "
         "when the job has recovered, which takes least room with each rank on its host of before";
}

void VaultState::check_growth(SlotKey key, const Slot& slot, std::uint64_t bytes) const {
  if (bytes > kMaxImageBytes) {
    throw InvalidArgument("an image of " + std::to_string(bytes) +
                          " bytes is larger than any can be");
  }
  const std::uint64_t have = slot.mapping.bytes().size();
  const std::uint64_t target = file_bytes_for(bytes);
  if (target <= have) return;
  slot.file->truncate(have);  // pages behind its end, if a process ended while the slot grew
  try {
    check_room({describe(*this, key), target - have, 1}, read_room_limits(fs, options.directory));
  } catch (const OutOfMemory& e) {
    throw make_error<OutOfMemory>(e.message() + what_holds_room(), {}, {}, e.path());
  }
}

Mapping VaultState::grow(SlotKey key, const Slot& slot, std::uint64_t bytes) const {
  const std::uint64_t have = slot.mapping.bytes().size();
  const std::uint64_t target = file_bytes_for(bytes);
  if (target <= have) return {};
  try {
    reserve_memory(*slot.file, have, target);
  } catch (const SystemError& e) {
    slot.file->truncate(have);  // gives back the pages behind the slot's end
    if (!is_no_room(e)) throw;
    throw_no_room({describe(*this, key), target - have, 1}, read_room_limits(fs, options.directory),
                  e.what() + what_holds_room());
  }
  Mapping grown(*slot.file, target, MapAccess::kReadWrite);
  // The pages are there; now this process's way to them, so that the first copy need not stop at
  // each. Not before they are reserved: a file of this size without pages would be a trap for who
  // adopts it.
  first_touch(grown.bytes());
  return grown;
}

void VaultState::lock_pages(SlotKey key, Slot& slot) {
  if (key.owner_rank == options.rank)
    page_locks.lock(slot.pages, slot.image(), describe(*this, key));
}

}  // namespace meshstage::detail
