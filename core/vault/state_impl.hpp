#pragma once
// What a Vault and its leases share. The last of them to go lets the vault go.
#include <map>
#include <memory>
#include <string>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/memory/mapping.hpp>
#include <meshstage/core/vault/control_impl.hpp>
#include <meshstage/core/vault/header_impl.hpp>
#include <meshstage/core/vault/page_locks_impl.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage::detail {

/// Guarded by VaultState::mutex, but for the image's bytes, which belong to the leases, and the
/// file and the size of the mapping, which only the writer changes.
struct Slot {
  std::unique_ptr<File> file;
  Mapping mapping;  // header page + image; replaced by its only writer, with the mutex held
  SlotPages pages;  // behind the mapping: unlocked before that is unmapped
  int readers = 0;
  bool writing = false;

  [[nodiscard]] std::uint64_t capacity() const { return mapping.bytes().size() - kHeaderBytes; }
  [[nodiscard]] std::span<std::byte> image() const { return mapping.bytes().subspan(kHeaderBytes); }
};

struct VaultState {
  VaultState(VaultOptions o, FileSystem& f) : options(std::move(o)), fs(f), process(f.process()) {}
  VaultState(const VaultState&) = delete;
  VaultState& operator=(const VaultState&) = delete;
  ~VaultState();

  const VaultOptions options;
  FileSystem& fs;
  const ProcessIdentity process;
  const ProcessOrigin origin;  // a forked child's copy is not the owner

  // Set by attach(), constant afterwards.
  ControlPage control;
  std::unique_ptr<File>
      lock_file;  // holds the record lock; the one descriptor of it in this process
  std::uint64_t lock_inode = 0;
  std::uint64_t incarnation = 0;
  std::uint64_t epoch = 0;  // in which this process took the vault
  bool taken_over = false;

  PageLocks page_locks;
  mutable Mutex mutex;  // also of what a Slot's leases change
  std::map<SlotKey, std::shared_ptr<Slot>> slots MESHSTAGE_GUARDED_BY(mutex);

  [[nodiscard]] bool in_forked_child() const noexcept { return !origin.is_here(); }

  [[nodiscard]] std::filesystem::path path_of(const std::string& name) const {
    return options.directory / name;
  }
  [[nodiscard]] std::filesystem::path slot_path(SlotKey key) const;
  [[nodiscard]] std::filesystem::path lock_path() const;
  /// Vault::check_owned(); needs no lock.
  void check_owned() const;

  // With the mutex held:
  [[nodiscard]] SlotInfo info(SlotKey key, const Slot& slot) const;
  /// The page, but for its word.
  void write_page(const Slot& slot, const SlotHeader& header) const;
  /// Raises the word of that page to this vault's epoch. Throws InvalidState (fenced).
  void take_word(std::span<std::byte> page) const;
  /// Makes the slot WRITING, then writes the page. Throws InvalidState (fenced); nothing has
  /// changed then.
  void begin(const Slot& slot, const SlotHeader& header) const;
  /// Writes the page, then makes the slot SEALED. Throws InvalidState (fenced); it stays WRITING.
  void seal(SlotKey key, const Slot& slot, const SlotHeader& header) const;
  /// The slot; its file with a header page is made if there is none. Refuses a key that cannot be.
  std::shared_ptr<Slot> ensure_slot(SlotKey key) MESHSTAGE_REQUIRES(mutex);
  /// Throws InvalidState if somebody has a lease on it.
  void check_free(SlotKey key, const Slot& slot) const;

  // With the slot marked as being written, or with the mutex held:
  /// Throws OutOfMemory if there is no room for what is missing; nothing has changed then.
  void check_growth(SlotKey key, const Slot& slot, std::uint64_t bytes) const;
  /// Reserves room for so many bytes behind the header; returns the mapping that has it, to be put
  /// into the slot with the mutex held, or an empty one if there was room. Throws OutOfMemory; the
  /// file's size is as it was then.
  [[nodiscard]] Mapping grow(SlotKey key, const Slot& slot, std::uint64_t bytes) const;
  /// Page-locks a slot of this rank's own images, if that is asked for.
  void lock_pages(SlotKey key, Slot& slot);
};

/// Opening and closing lock files of other owners, and becoming one, happens one at a time in a
/// process: POSIX record locks do not tell its threads apart.
Mutex& lock_files_mutex();

/// "slot own0 of job "gpt2", rank 2".
std::string describe(const VaultState& state, SlotKey key);

}  // namespace meshstage::detail
