#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <meshstage/core/replicate/engine.hpp>

/// The calls of the vault that may take seconds: they make room, or free it. Slots posts them to
/// its thread.
/// Threads: ms-slots.
namespace meshstage::replicate {

/// An image that is to come into a slot.
struct WantedImage {
  SlotKey slot;
  ImageIdentity identity;
  std::uint64_t bytes = 0;  ///< To be stored.
  /// Of a fetch: the stray vault's slot that may become this slot; null: none.
  std::shared_ptr<const StraySlot> stray{};
  /// Of a fetch: the chosen step's base. Without room, slots of stray vaults go, but for those of
  /// this image and of `identity`'s.
  std::optional<ImageId> spare{};
};
/// The result of begin_image().
struct BegunImage {
  std::shared_ptr<WriteLease> lease;  ///< Not valid if there is an error, or the image is there.
  std::exception_ptr error;
  std::optional<std::string> fenced;  ///< fenced_by() of the error.
};
/// Has the stray's slot moved (Vault::move_stray), which ends with a sealed slot. Else marks the
/// slot WRITING and makes room (Vault::begin_write).
[[nodiscard]] BegunImage begin_image(Engine& engine, const WantedImage& wanted);

/// Seals the slot; if that fails, abandons it and returns the exception.
[[nodiscard]] std::exception_ptr seal_image(WriteLease& lease, const ImageInfo& info);

/// Removes the vault, at the end of the job; warns if that fails. Then runs `then` on the loop.
void remove_slots(Engine& engine, std::function<void()> then);

}  // namespace meshstage::replicate
