#pragma once
// The state that a Vault and its leases have in common. The vault's ownership ends with the last of
// them.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/memory/mapping.hpp>
#include <meshstage/core/vault/control_impl.hpp>
#include <meshstage/core/vault/header_impl.hpp>
#include <meshstage/core/vault/names_impl.hpp>
#include <meshstage/core/vault/page_locks_impl.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage::detail {

struct Stray;

/// VaultState::mutex guards it, with two exceptions: the leases own the image's bytes, and only the
/// writer changes the file and the size of the mapping.
struct Slot {
  std::unique_ptr<File> file;
  Mapping mapping;  // header page + image; replaced by its only writer, with the mutex held
  SlotPages pages;  // behind the mapping: unlocked before that is unmapped
  int readers = 0;
  bool writing = false;

  [[nodiscard]] std::uint64_t capacity() const { return mapping.bytes().size() - kHeaderBytes; }
  [[nodiscard]] std::span<std::byte> image() const { return mapping.bytes().subspan(kHeaderBytes); }
};

/// A file of a vault, of whichever incarnation.
struct VaultFile {
  VaultFileName name;
  std::filesystem::path path;
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
  mutable Mutex mutex;  // also guards each Slot, as said there
  std::map<SlotKey, std::shared_ptr<Slot>> slots MESHSTAGE_GUARDED_BY(mutex);
  std::vector<std::shared_ptr<Stray>> strays MESHSTAGE_GUARDED_BY(mutex);

  [[nodiscard]] bool in_forked_child() const noexcept { return !origin.is_here(); }

  [[nodiscard]] std::filesystem::path path_of(const std::string& name) const {
    return options.directory / name;
  }
  /// The files of this user, job and rank in the directory.
  [[nodiscard]] std::vector<VaultFile> files() const;
  /// Of all the job's ranks.
  [[nodiscard]] std::vector<VaultFile> files_of_job() const;
  [[nodiscard]] std::filesystem::path slot_path(SlotKey key) const;
  /// Of the incarnation `of`.
  [[nodiscard]] std::filesystem::path lock_path(std::uint64_t of) const;
  [[nodiscard]] std::filesystem::path lock_path() const { return lock_path(incarnation); }
  [[nodiscard]] std::filesystem::path control_path() const;
  /// Vault::check_owned(); needs no lock.
  void check_owned() const;

  [[nodiscard]] SlotInfo info(SlotKey key, const Slot& slot) const MESHSTAGE_REQUIRES(mutex);
  /// Writes the page except for its word.
  void write_page(const Slot& slot, const SlotHeader& header) const MESHSTAGE_REQUIRES(mutex);
  /// Raises the word of that page to this vault's epoch; needs no lock. Throws InvalidState
  /// (fenced).
  void take_word(std::span<std::byte> page) const;
  /// Makes the slot WRITING, then writes the page. Throws Fenced: then nothing has
  /// changed.
  void begin(const Slot& slot, const SlotHeader& header) const MESHSTAGE_REQUIRES(mutex);
  /// Writes the page, then makes the slot SEALED. Throws Fenced: then the slot
  /// stays WRITING.
  void seal(SlotKey key, const Slot& slot, const SlotHeader& header) const
      MESHSTAGE_REQUIRES(mutex);
  /// The slot; makes its file, with a header page, if there is none. Refuses a key that no vault
  /// can have.
  std::shared_ptr<Slot> ensure_slot(SlotKey key) MESHSTAGE_REQUIRES(mutex);
  /// The slot for a write: with a new file if the present one is not this vault's alone, because a
  /// move of the slot was cut off half-way, or because its word is of another vault's epoch. There
  /// must be no lease.
  std::shared_ptr<Slot> ensure_slot_to_write(SlotKey key) MESHSTAGE_REQUIRES(mutex);
  /// Its file is, or will be, another one.
  void forget_slot(SlotKey key) MESHSTAGE_REQUIRES(mutex);
  /// Throws InvalidState if there is a lease on the slot.
  void check_free(SlotKey key, const Slot& slot) const MESHSTAGE_REQUIRES(mutex);

  // With the slot marked as being written, or with the mutex held:
  /// Throws OutOfMemory if there is no room for the missing bytes. Changes nothing. This error
  /// and grow()'s say how much other slots of the job hold in the directory.
  void check_growth(SlotKey key, const Slot& slot, std::uint64_t bytes) const;
  /// Reserves room for so many bytes behind the header. Returns the mapping with that room, which
  /// the caller puts into the slot with the mutex held, or an empty mapping if there was room
  /// already. Throws OutOfMemory: then the file's size is as it was.
  [[nodiscard]] Mapping grow(SlotKey key, const Slot& slot, std::uint64_t bytes) const;
  [[nodiscard]] std::string what_holds_room() const;
  /// Page-locks a slot of this rank's own images, if there is a pinner.
  void lock_pages(SlotKey key, Slot& slot);
};

/// Held by a thread that opens or closes lock files of other owners or becomes an owner: in a
/// process only one may at a time, because POSIX record locks do not tell threads apart.
Mutex& lock_files_mutex();

/// "slot own0 of job "gpt2", rank 2".
std::string describe(const VaultState& state, SlotKey key);

}  // namespace meshstage::detail
