#pragma once
// Vaults of other ranks of the job in this rank's directory. See stray.cpp.
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/vault/state_impl.hpp>

namespace meshstage::detail {

/// A stray vault that this process took. Destroying it releases its locks.
struct Stray {
  /// That rank's vault, without a lock file of its own, and with an incarnation above all others.
  std::shared_ptr<VaultState> vault;
  struct Lock {
    std::uint64_t incarnation = 0;
    std::filesystem::path path;
    std::unique_ptr<File> file;
  };
  std::vector<Lock> locks;  ///< Of its incarnations whose owner is dead, held.
  ImageId newest_other;     ///< The newest sealed image of another world size; kNoImage: none.
};

/// The other ranks that have a control page in the vault's directory.
std::vector<int> other_ranks(const VaultState& mine);

/// The control page of another rank's vault in the directory; nothing if it cannot be used.
std::optional<ControlPage> control_of(const VaultState& mine, int rank);

/// The ranks of `generation` whose vaults lie in the directory, `mine` included, and the
/// incarnation of each. The same at each of them.
std::map<int, std::uint64_t> vaults_of(const VaultState& mine, std::uint64_t generation);

/// The ranks of the search's generation that take strays in the vault's directory, ascending: the
/// same at each of them. `mine` alone if the search does not say who needs what.
std::vector<int> ranks_that_take(const VaultState& mine, const StraySearch& search);
/// Which of them takes the vault of `rank`.
int taker_of(int rank, std::span<const int> takers, const StraySearch& search);

/// Takes the vault of `rank`; nothing if it is no stray, or another process has it. Throws
/// SystemError, and, unless any_world, InvalidState where an image there is of another world size.
/// Call with lock_files_mutex() held.
std::optional<Stray> take_stray(const VaultState& mine, int rank, const StraySearch& search);

/// The sealed slots of incarnations older than the vault's own (of a stray: of all), whose bytes no
/// process changes; mapped, not verified.
std::vector<StraySlot> mapped_older_slots(const VaultState& vault);

/// If the stray's lock is held, makes the file of `from` the slot `to` of `mine`, which has no
/// lease and no image that is needed. If it throws, `to` has no image and the stray still has its
/// own; if only the last call fails, which removes the old name, both have it. Throws Fenced,
/// CorruptData, SystemError. Call with lock_files_mutex() held.
bool move_in(VaultState& mine, const Stray& stray, const StraySlot& from, SlotKey to)
    MESHSTAGE_REQUIRES(mine.mutex);

/// Removes the slots of the incarnations whose locks are held, but for sealed ones with an image in
/// `needed`. Returns the bytes freed. Call with lock_files_mutex() held.
std::uint64_t remove_all_but(const Stray& stray, std::span<const ImageId> needed);

/// Removes the slots and lock files of the incarnations whose locks are held, and releases the
/// locks. `all`: removes every file of the vault, unless another process has taken it since.
/// Returns the bytes freed. Call with lock_files_mutex() held.
std::uint64_t remove(Stray& stray, bool all);

}  // namespace meshstage::detail
