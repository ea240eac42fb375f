#pragma once
// Becoming the owner of a vault. See attach.cpp.
#include <meshstage/core/vault/state_impl.hpp>

namespace meshstage::detail {

/// Takes over the newest incarnation if its owner is dead, else makes a newer incarnation. Sets
/// control, lock_file, lock_inode, incarnation, epoch and taken_over of `state`.
void become_owner(VaultState& state);

/// Raises the epoch in the words of all slot files of the job and rank, of every incarnation.
void take_words(const VaultState& state);

/// Opens and maps the slot files of `state`'s incarnation.
void open_slots(VaultState& state) MESHSTAGE_REQUIRES(state.mutex);

}  // namespace meshstage::detail
