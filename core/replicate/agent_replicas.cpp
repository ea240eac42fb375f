// What a holder has of its wards, for the trainer to look at.
#include <algorithm>
#include <memory>
#include <utility>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/replicate/agent_impl.hpp>

namespace meshstage {

Replica Agent::Impl::held(int ward, const NodeRegistry& registry) {
  const auto& all = config_->wards;
  if (!std::binary_search(all.begin(), all.end(), ward)) {
    std::string names;
    for (const int w : all) names += (names.empty() ? "" : ", ") + std::to_string(w);
    throw InvalidArgument("rank " + std::to_string(options_.rank) + " holds no replica of rank " +
                          std::to_string(ward) +
                          (names.empty() ? "; it holds none" : "; its wards are " + names));
  }
  {
    const std::lock_guard lock(mutex_);
    if (finished_) throw InvalidState("held() after finish()");
    if (loss_) std::rethrow_exception(loss_->error());
    if (!recovered_) throw InvalidState("held() before recover() in this generation");
  }
  // The agent's thread knows which step is complete, and gives the slot to nobody meanwhile.
  Promise<std::shared_ptr<ReadLease>> found;
  Work<std::shared_ptr<ReadLease>> lease_found = found.work();
  loop_->post([this, ward, found]() mutable {
    std::exception_ptr error;  // told outside the catch: who gets it is the last to have it
    try {
      for (const int index : {0, 1}) {
        const SlotKey key{ward, index};
        const SlotInfo info = vault_.slot(key);
        if (info.state != SlotState::kSealed || !state_.base.exists() ||
            info.image.identity.id != state_.base) {
          continue;
        }
        auto lease = std::make_shared<ReadLease>(vault_.read(key));
        hold(key);
        found.set_value(std::move(lease));
        return;
      }
      error = std::make_exception_ptr(
          NotFound("no complete step of rank " + std::to_string(ward) + " is held yet"));
    } catch (const Error&) {
      error = std::current_exception();
    }
    found.set_error(std::move(error));
  });
  const std::shared_ptr<ReadLease> lease = lease_found.get();
  const std::shared_ptr<void> at_end(nullptr, [this, lease](void*) {
    loop_->post([this, lease] {
      const SlotKey key = lease->key();
      lease->release();
      release(key);
    });
  });
  const auto copy = Storage::allocate(lease->image().size());
  fast_copy(copy.bytes(), lease->image());
  const ImageInfo info = verify_image(copy.bytes());
  return {ward, info.identity.id,
          decode_image(copy.bytes(), std::make_shared<Storage>(copy), registry,
                       StorageTraits{.read_only = false})};
}

}  // namespace meshstage
