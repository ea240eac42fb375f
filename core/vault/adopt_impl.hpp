#pragma once
// Slots of older incarnations of a vault. See adopt.cpp.
#include <filesystem>
#include <optional>
#include <vector>

#include <meshstage/core/vault/state_impl.hpp>

namespace meshstage::detail {

/// A sealed slot of an older incarnation.
struct OlderSlot {
  std::uint64_t incarnation = 0;
  SlotKey key;
  ImageInfo image;
  std::filesystem::path path;
};

/// All sealed slots of older incarnations, the newest images first. The slots of living owners were
/// taken, too, so no owner changes any of these slots any more.
std::vector<OlderSlot> older_slots(const VaultState& state);

/// The slot of this incarnation for the image of `from`: one without a sealed image and without a
/// lease. Nothing if there is no such slot, or if a slot has this image already.
std::optional<SlotKey> place_for(const VaultState& state, const OlderSlot& from)
    MESHSTAGE_REQUIRES(state.mutex);

/// If the owner is dead, makes the file of `from` this incarnation's slot `to`. Call with
/// lock_files_mutex() held.
bool move_in(VaultState& state, const OlderSlot& from, SlotKey to) MESHSTAGE_REQUIRES(state.mutex);

}  // namespace meshstage::detail
