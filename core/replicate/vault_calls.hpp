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

/// The result of begin_image().
struct BegunImage {
  std::shared_ptr<WriteLease> lease;  ///< Not valid if there is an error.
  std::exception_ptr error;
  std::optional<std::string> fenced;  ///< fenced_by() of the error.
};
/// Marks the slot WRITING and makes room for `bytes` of that image (Vault::begin_write).
[[nodiscard]] BegunImage begin_image(Engine& engine, SlotKey key, const ImageIdentity& identity,
                                     std::uint64_t bytes);

/// Seals the slot; if that fails, abandons it and returns the exception.
[[nodiscard]] std::exception_ptr seal_image(WriteLease& lease, const ImageInfo& info);

/// Removes the vault, at the end of the job; warns if that fails. Then runs `then` on the loop.
void remove_slots(Engine& engine, std::function<void()> then);

}  // namespace meshstage::replicate
