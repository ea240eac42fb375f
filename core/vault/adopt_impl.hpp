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

/// All of them, the newest images first. Those of living owners were taken, too: nobody changes
/// them.
std::vector<OlderSlot> older_slots(const VaultState& state);

/// The slot of this incarnation for that image: one that has no sealed image and no lease. Nothing
/// if there is none, or if one has this image already.
std::optional<SlotKey> place_for(const VaultState& state, const OlderSlot& from)
    MESHSTAGE_REQUIRES(state.mutex);

/// Makes the file this incarnation's slot `to`, if the owner is dead. Call with lock_files_mutex()
/// held.
bool move_in(VaultState& state, const OlderSlot& from, SlotKey to) MESHSTAGE_REQUIRES(state.mutex);

}  // namespace meshstage::detail
