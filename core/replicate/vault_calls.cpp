#include <meshstage/core/replicate/vault_calls.hpp>

#include <array>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

namespace {

/// Removes slots of vaults that other ranks left on this host, and says so. Returns whether there
/// may be room now.
bool make_room(Engine& engine, const WantedImage& wanted, const OutOfMemory& why) {
  std::uint64_t freed = 0;
  // If a step is staged, all have agreed on what was recovered. The trainer removes the rest, and
  // may do it just now.
  const bool superseded = !wanted.spare && !engine.options.any_world && engine.vault.has_strays();
  if (wanted.spare) {
    const std::array<ImageId, 2> needed{wanted.identity.id, *wanted.spare};
    freed = engine.vault.remove_strays_but(needed);
  } else if (superseded) {
    freed = engine.vault.free_superseded();
  }
  if (freed > 0) {
    engine.report.info("there was no room, so " + std::to_string(freed) +
                       " bytes of earlier steps went: " + why.message());
  }
  return superseded || freed > 0;
}

WriteLease begin_write(Engine& engine, const WantedImage& wanted) {
  const auto begin = [&] {
    return engine.vault.begin_write(wanted.slot, wanted.identity, wanted.bytes);
  };
  try {
    return begin();
  } catch (const OutOfMemory& e) {
    if (!make_room(engine, wanted, e)) throw;
  }
  return begin();
}

}  // namespace

BegunImage begin_image(Engine& engine, const WantedImage& wanted) {
  BegunImage begun{.lease = std::make_shared<WriteLease>(), .error = {}, .fenced = {}};
  try {
    const bool moved = wanted.stray && engine.vault.move_stray(*wanted.stray, wanted.slot);
    if (!moved) *begun.lease = begin_write(engine, wanted);
    engine.gate.count(
        [held = engine.vault.bytes_held(), locks = engine.vault.page_locks()](Stats& stats) {
          stats.vault_bytes = held;
          stats.page_locked_bytes = locks.bytes;
          stats.page_locks_refused = locks.refused;
        });
  } catch (...) {  // whatever it is, the image that asked ends by it
    begun.error = std::current_exception();
    begun.fenced = fenced_by(begun.error);
  }
  return begun;
}

std::exception_ptr seal_image(WriteLease& lease, const ImageInfo& info) {
  try {
    lease.seal(info);
    return nullptr;
  } catch (...) {  // the image ends by it
    auto error = std::current_exception();
    lease.abandon();
    return error;
  }
}

void remove_slots(Engine& engine, std::function<void()> then) {
  try {
    engine.vault.remove_all();
  } catch (...) {  // finish() has succeeded all the same
    engine.report.warn("cannot remove the vault: " + text_of(std::current_exception()));
  }
  engine.loop.post(std::move(then));
}

}  // namespace meshstage::replicate
