#include <meshstage/core/replicate/collective_waits.hpp>

#include <utility>

namespace meshstage::replicate {

bool CollectiveWaits::any() const {
  const MutexLock lock(mutex_);
  return long_ > 0;
}

void CollectiveWaits::watch(std::function<void()> begun) {
  const MutexLock lock(mutex_);
  begun_ = std::move(begun);
}

void CollectiveWaits::change(int by) noexcept {
  const MutexLock lock(mutex_);
  long_ += by;
  if (begun_ && by > 0 && long_ == by) begun_();
}

}  // namespace meshstage::replicate
