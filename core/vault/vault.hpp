#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
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
  /// A directory in shared memory, or any other (for example a tmpfs with huge pages). Made with
  /// mode 0700 if it is missing.
  std::filesystem::path directory = "/dev/shm";
  FileSystem* fs = nullptr;  ///< Null: real_file_system(). Must outlive the vault and its leases.
  /// The epoch in which this process takes the vault. It must be above every earlier one, or
  /// attach() refuses. 0: the next one.
  std::uint64_t epoch = 0;
  /// Given, the number of ranks of a job that may go on from another number: left_in_older() has
  /// what no slot could take, and free_superseded() leaves the newer ones of it.
  std::optional<int> world_size = {};
  /// With world_size: images of another number stay in memory as they are. attach() takes over no
  /// incarnation that has one, but makes a new one beside it, and adopt_older() leaves such images
  /// where they are.
  bool keeps_others = false;
  /// For tests: called at named points, on the thread that passes them: "slot-word-loaded", between
  /// the load of a slot's word and its compare-and-swap.
  std::function<void(std::string_view)> observer = {};
};

/// What Vault::take_strays() looks for.
struct StraySearch {
  std::uint64_t generation = 0;
  int world_size = 0;
  /// Of a vault that is left alone, and why.
  std::function<void(const std::string&)> warn = [](const std::string&) {};
  /// Take vaults with images of another world size, too.
  bool any_world = false;
  /// Whether `rank` needs images that lie in the vault of rank `vault`: then the first such rank of
  /// the generation in this directory takes it, so that slots can move (move_stray()). Must be the
  /// same function at all ranks. Null: the first rank that comes.
  std::function<bool(int rank, int vault)> needs = {};
};

/// The page-locked bytes of a vault, which devices copy to and from by themselves.
struct VaultPageLocks {
  std::uint64_t bytes = 0;    ///< Page-locked now.
  std::uint64_t refused = 0;  ///< How often locking was refused.
};

/// The slots of one rank on this host: files that outlive the process, owned by one process at a
/// time.
///
/// Ownership is a POSIX record lock on the incarnation's own lock file, opened once. attach() takes
/// over the newest incarnation, and the images in its slots, if its owner is dead. If that owner
/// lives (stopped, perhaps), attach() makes a new incarnation with empty slots, and the older owner
/// is *fenced*: its next call throws Fenced, "incarnation N is superseded by M, pid P".
/// An owner writes only to its own incarnation's files, so a fenced owner that wakes up does no
/// harm.
///
/// A destroyed Vault leaves its files in place; ownership ends with the Vault and its last lease.
/// Threads: any. Formats: core/vault/README.md.
class MESHSTAGE_API Vault {
 public:
  /// Throws InvalidArgument (job name, rank), InvalidState (this process has that vault attached
  /// already; the files belong to another user or are open to others), IoError.
  [[nodiscard]] static Vault attach(VaultOptions options);

  /// The highest number among the epochs in which that rank's vault was taken and the generations
  /// noted in it; 0 if it does not exist. Only reads. Throws as attach().
  [[nodiscard]] static std::uint64_t highest_epoch(const VaultOptions& options);

  Vault(Vault&&) noexcept;
  Vault& operator=(Vault&&) noexcept;
  ~Vault();

  [[nodiscard]] const VaultOptions& options() const noexcept;
  /// From 1; higher is newer.
  [[nodiscard]] std::uint64_t incarnation() const noexcept;
  /// The epoch in which this process took the vault.
  [[nodiscard]] std::uint64_t epoch() const noexcept;
  /// True if attach() took over a dead owner's incarnation; false if this incarnation is new.
  [[nodiscard]] bool taken_over() const noexcept;
  /// Throws Fenced if a newer incarnation exists, InvalidState if the vault was removed.
  /// Costs an atomic load and one stat.
  void check_owned() const;

  /// A slot that has no file yet is kEmpty with capacity 0. Reads the header anew each time.
  [[nodiscard]] SlotInfo slot(SlotKey key) const;
  /// Every slot that has a file, ascending.
  [[nodiscard]] std::vector<std::pair<SlotKey, SlotInfo>> slots() const;

  /// The highest generation in any header (also as a base) and in any note_generation(), over all
  /// incarnations of this job, of every rank whose vault is in this directory. 0 if there is none.
  [[nodiscard]] std::uint64_t max_generation() const;
  /// Notes that this process enters generation `g`. The note lasts as long as the vault's files.
  void note_generation(std::uint64_t g);

  /// Marks the slot WRITING, in memory before this returns, then grows the slot if `bytes` do not
  /// fit. `bytes` are those to be stored: the image's, or in a ward's slot the replica's.
  /// Throws InvalidState if the slot is being written or read, Fenced (the slot is untouched).
  /// Throws InvalidArgument if the identity's job is not the vault's, its rank not
  /// the slot's, or its generation 0. Throws OutOfMemory if there is no room (the message has bytes
  /// needed and available, which limit, and the remedy): the slot then stays WRITING without a
  /// lease, with its old size.
  [[nodiscard]] WriteLease begin_write(SlotKey key, const ImageIdentity& identity,
                                       std::uint64_t bytes);
  /// Throws InvalidState if the slot is not sealed, and Fenced.
  [[nodiscard]] ReadLease read(SlotKey key);
  /// Where the slot's file lies, for texts: it may be another slot's later, or gone.
  [[nodiscard]] std::filesystem::path file_of(SlotKey key) const;

  /// From now on begin_write() page-locks slots of the rank's own images, each slot whole or not at
  /// all, so that devices copy to and from them at their full rate. A slot that the system refuses
  /// to lock is used unlocked; refusals are counted, and the first one gives a warning. The first
  /// pinner stays; it must outlive the vault and its leases. A growing slot is unlocked, mapped
  /// anew and locked.
  void use_pinner(MemoryPinner& pinner, std::function<void(const std::string&)> warn = {});
  /// Page-locks the slot of `lease` too, for as long as the slot is mapped.
  void lock_pages(const ReadLease& lease);
  [[nodiscard]] VaultPageLocks page_locks() const;
  /// Brings images of older incarnations into empty slots of this one, newest first: moves them if
  /// their owner is dead, copies them if it lives (a stopped process; its files are only read).
  /// Returns the slots that were filled; the caller must verify their bytes. An image for which
  /// there is no empty slot, or no memory, stays where it is until free_superseded(). Throws
  /// Fenced, SystemError.
  std::vector<SlotKey> adopt_older();

  /// With VaultOptions::world_size: the sealed images in this rank's older incarnations that lie in
  /// no slot of this one, the newest first; else none. These are the ones that adopt_older() had no
  /// slot for and, with VaultOptions::keeps_others, those of other numbers of ranks. No process
  /// changes their bytes. They stay until free_superseded() or remove_all(). Throws Fenced,
  /// SystemError.
  [[nodiscard]] std::vector<StraySlot> left_in_older() const;
  /// Bytes of the job's slots in the directory that are in no vault of this rank's generation: of
  /// older incarnations, and of strays. Throws SystemError.
  [[nodiscard]] std::uint64_t bytes_left() const;

  /// Takes *stray* vaults: those of this job, in this directory, of other ranks, that no process of
  /// the search's generation has. Every rank of that generation must call note_generation() before
  /// any rank calls this, and each must call it, because one rank takes each vault. Returns the
  /// sealed slots, the newest first in each vault. Former owners of a taken vault can begin and
  /// seal nothing any more; a process that attaches it later makes another incarnation. Unless
  /// any_world, a vault with images of another world size is left alone. First releases the vaults
  /// that an earlier call took. Throws SystemError.
  std::vector<StraySlot> take_strays(const StraySearch& search);

  /// Makes a stray's slot this vault's slot `to`, without a copy: the image that the vault's former
  /// rank kept on this host for rank `to.owner_rank` changes its role. Only for a slot of the last
  /// take_strays(). False if `to` is to have other bytes, if another process holds the lock, or if
  /// the slot was moved before: then nothing has changed. If it throws, `to` has no image, and the
  /// stray still has its own. `from.bytes` stay readable. Throws InvalidState (a lease on `to`),
  /// Fenced, CorruptData, SystemError.
  bool move_stray(const StraySlot& from, SlotKey to);
  /// Makes room: removes every slot of the strays, but for sealed ones with these images. Strays
  /// with images of another world size, and those whose owner lives, stay. What a StraySlot keeps
  /// mapped is freed with it. Returns the bytes removed. Throws Fenced, SystemError.
  std::uint64_t remove_strays_but(std::span<const ImageId> needed);

  /// Whether the last take_strays() took any.
  [[nodiscard]] bool has_strays() const;

  /// Bytes of this incarnation's slot files, headers included.
  [[nodiscard]] std::uint64_t bytes_held() const;
  /// Bytes of the slot files of all ranks of this rank's generation in the directory, but of each
  /// rank at most `most`. Throws SystemError.
  [[nodiscard]] std::uint64_t bytes_held_by_generation(std::uint64_t most) const;
  /// Removes the slots of older incarnations (a process that still maps them is safe), the lock
  /// files of incarnations whose owner is dead, and the taken strays that no living process owns. A
  /// stray with an image of another world size that is newer than `recovered` stays until
  /// remove_all(), because the job went on from an older step; so does an older incarnation with
  /// an image of left_in_older() that new. Call it once recover() has agreed.
  /// Returns the bytes freed.
  std::uint64_t free_superseded(ImageId recovered = kNoImage);
  /// Removes every file of this job and rank, older incarnations' too, and those of the strays that
  /// were taken; afterwards check_owned() throws. Only finish() calls this. Throws
  /// Fenced.
  void remove_all();

 private:
  explicit Vault(std::shared_ptr<detail::VaultState> state);
  bool copy_in(const detail::OlderSlot& from, SlotKey to);
  std::shared_ptr<detail::VaultState> state_;
};

}  // namespace meshstage
