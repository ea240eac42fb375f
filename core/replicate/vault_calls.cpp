#include <meshstage/core/replicate/vault_calls.hpp>

#include <utility>

namespace meshstage::replicate {

BegunImage begin_image(Engine& engine, SlotKey key, const ImageIdentity& identity,
                       std::uint64_t bytes) {
  BegunImage begun{.lease = std::make_shared<WriteLease>(), .error = {}, .fenced = {}};
  try {
    *begun.lease = engine.vault.begin_write(key, identity, bytes);
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
