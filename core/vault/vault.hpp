#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meshstage/core/memory/pinning.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/vault/slot.hpp>

namespace meshstage {

struct VaultOptions {
  std::string job;  ///< [A-Za-z0-9._-]{1,64}
  int rank = 0;
  /// Shared memory, or a directory (a tmpfs with huge pages, say). Made with mode 0700 if it is
  /// missing.
  std::filesystem::path directory = "/dev/shm";
  FileSystem* fs = nullptr;  ///< Null: real_file_system(). Must outlive the vault and its leases.
  /// In which this process takes the vault: above every one in which it was taken before, or
  /// attach() refuses. 0: the next one.
  std::uint64_t epoch = 0;
  /// Hears of named points, on the thread that passes them: "slot-word-loaded", between the load of
  /// a slot's word and its compare-and-swap. For tests.
  std::function<void(std::string_view)> observer = {};
};

/// What of a vault a device copies to and from by itself.
struct VaultPageLocks {
  std::uint64_t bytes = 0;    ///< Page-locked now.
  std::uint64_t refused = 0;  ///< How often locking was refused.
};

/// The slots of one rank on this host: files that outlive the process, owned by one process at a
/// time.
///
/// Ownership is a POSIX record lock on the incarnation's own lock file, opened once. attach() takes
/// over the newest incarnation if its owner is dead, with what its slots hold. If that owner lives
/// (stopped, perhaps), a new incarnation with empty slots is made, and the older one is *fenced*:
/// whatever it tries next throws InvalidState "fenced: incarnation N is superseded by M, pid P". It
/// only ever writes to its own incarnation's files, so a fenced owner that wakes up harms nothing.
///
/// A destroyed Vault leaves everything in place; ownership ends with it and its last lease.
/// Threads: any. Formats: core/vault/README.md.
class MESHSTAGE_API Vault {
 public:
  /// Throws InvalidArgument (job name, rank), InvalidState (this process has that vault attached
  /// already; the files belong to another user or are open to others), IoError.
  [[nodiscard]] static Vault attach(VaultOptions options);

  Vault(Vault&&) noexcept;
  Vault& operator=(Vault&&) noexcept;
  ~Vault();

  [[nodiscard]] const VaultOptions& options() const noexcept;
  /// From 1; higher is newer.
  [[nodiscard]] std::uint64_t incarnation() const noexcept;
  /// In which this process took the vault.
  [[nodiscard]] std::uint64_t epoch() const noexcept;
  /// True if attach() took over what a dead owner left; false if this incarnation is fresh.
  [[nodiscard]] bool taken_over() const noexcept;
  /// Throws InvalidState if a newer incarnation exists ("fenced: ...") or the vault was removed. An
  /// atomic load and one stat.
  void check_owned() const;

  /// A slot that has no file yet is kEmpty with capacity 0. Reads the header anew each time.
  [[nodiscard]] SlotInfo slot(SlotKey key) const;
  /// Every slot that has a file, ascending.
  [[nodiscard]] std::vector<std::pair<SlotKey, SlotInfo>> slots() const;

  /// The highest generation in any header (also as a base) and of any note_generation(), by any
  /// incarnation of this job and rank. 0 if there is none.
  [[nodiscard]] std::uint64_t max_generation() const;
  /// Remembers that generation `g` was seen; lasts as long as the vault's files.
  void note_generation(std::uint64_t g);

  /// Marks the slot WRITING, in memory before this returns, then grows it if `bytes` do not fit:
  /// those to be stored, in a held slot the replica's. Throws InvalidState if the slot is being
  /// written or read, or the vault is fenced (the slot is untouched); InvalidArgument if the
  /// identity's job is not the vault's, its rank not the slot's, its generation 0; OutOfMemory if
  /// there is no room (needed, available, which limit, remedy; the slot is left WRITING without a
  /// lease, its size as it was).
  [[nodiscard]] WriteLease begin_write(SlotKey key, const ImageIdentity& identity,
                                       std::uint64_t bytes);
  /// Throws InvalidState if the slot is not sealed or the vault is fenced.
  [[nodiscard]] ReadLease read(SlotKey key);

  /// From now on slots of the rank's own images are page-locked, all of a slot or nothing of it,
  /// when they are begun, so that devices copy to and from them at their full rate. Where that is
  /// refused the slot is used without, which is counted and warned of once. The first pinner stays;
  /// it must outlive the vault and its leases. A growing slot is unlocked, mapped anew and locked.
  void use_pinner(MemoryPinner& pinner, std::function<void(const std::string&)> warn = {});
  /// The same for a slot that is read, for as long as it is mapped.
  void lock_pages(const ReadLease& lease);
  [[nodiscard]] VaultPageLocks page_locks() const;
  /// Brings what older incarnations hold into empty slots of this one, newest first: moved where
  /// their owner is dead, copied where it lives (a stopped process; its files are only read).
  /// Returns the slots that were filled; whether their bytes are whole is the caller's to verify.
  /// What finds no empty slot, or no room in memory, stays where it is until free_superseded().
  /// Throws InvalidState if fenced, SystemError.
  std::vector<SlotKey> adopt_older();

  /// Bytes of this incarnation's slot files, headers included.
  [[nodiscard]] std::uint64_t bytes_held() const;
  /// Removes the slots of older incarnations (safe for one that still maps them) and the lock files
  /// of those whose owner is dead. Call it once recover() has agreed. Returns the bytes freed.
  std::uint64_t free_superseded();
  /// Removes every file of this job and rank, older incarnations' too; afterwards check_owned()
  /// throws. Only finish() calls this. Throws InvalidState if fenced.
  void remove_all();

 private:
  explicit Vault(std::shared_ptr<detail::VaultState> state);
  bool copy_in(const detail::OlderSlot& from, SlotKey to);
  std::shared_ptr<detail::VaultState> state_;
};

}  // namespace meshstage
