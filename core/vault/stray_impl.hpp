#pragma once
// Vaults of other ranks of the job in this rank's directory. See stray.cpp.
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/vault/state_impl.hpp>

namespace meshstage::detail {

/// A stray vault that this process took. Its locks are let go with it.
struct Stray {
  /// Of that rank, without a lock file of its own and above all incarnations.
  std::shared_ptr<VaultState> vault;
  struct Lock {
    std::uint64_t incarnation = 0;
    std::filesystem::path path;
    std::unique_ptr<File> file;
  };
  std::vector<Lock> locks;  ///< Of its incarnations whose owner is dead, held.
  ImageId newest_other;     ///< The newest sealed image of another world size; kNoImage: none.
};

/// The ranks but this one of which there are control pages in the vault's directory.
std::vector<int> other_ranks(const VaultState& mine);

/// Takes the vault of `rank` for `generation`; nothing if it is no stray, or another process has
/// it. Throws SystemError, and, unless `any_world`, InvalidState where an image there is of another
/// world size. Call with lock_files_mutex() held.
std::optional<Stray> take_stray(const VaultState& mine, int rank, std::uint64_t generation,
                                int world_size, bool any_world);

/// Its sealed slots, whose bytes no process changes; mapped, not verified.
std::vector<StraySlot> slots_of(const Stray& stray);

/// Removes the slots and lock files of the incarnations whose locks are held, and lets these go.
/// `all`: every file of the vault, unless somebody has taken it since. Returns the bytes freed.
/// Call with lock_files_mutex() held.
std::uint64_t remove(Stray& stray, bool all);

}  // namespace meshstage::detail
