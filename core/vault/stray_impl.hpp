#pragma once
// Vaults of other ranks of the job in this rank's directory. See stray.cpp.
#include <filesystem>
#include <memory>
#include <optional>
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

/// Takes the vault of `rank` for `generation`; nothing if it is no stray, or another process has
/// it. Throws SystemError, and, unless `any_world`, InvalidState where an image there is of another
/// world size. Call with lock_files_mutex() held.
std::optional<Stray> take_stray(const VaultState& mine, int rank, std::uint64_t generation,
                                int world_size, bool any_world);

/// The stray's sealed slots, whose bytes no process changes; mapped, not verified.
std::vector<StraySlot> slots_of(const Stray& stray);

/// Removes the slots and lock files of the incarnations whose locks are held, and releases the
/// locks. `all`: removes every file of the vault, unless another process has taken it since.
/// Returns the bytes freed. Call with lock_files_mutex() held.
std::uint64_t remove(Stray& stray, bool all);

}  // namespace meshstage::detail
