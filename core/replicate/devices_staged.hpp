#pragma once
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/device/runtime.hpp>

namespace meshstage {

/// When devices have copied what is staged: known as soon as their copies are issued, or when it is
/// sure that none will be.
/// Threads: any.
class DevicesStaged {
 public:
  /// Behind the copies of each device. The first call counts.
  void set(std::vector<DeviceReady> copied) {
    const MutexLock lock(mutex_);
    if (std::exchange(known_, true)) return;
    copied_ = std::move(copied);
    changed_.notify_all();
  }
  /// Waits until that is known.
  [[nodiscard]] std::vector<DeviceReady> wait() {
    MutexLock lock(mutex_);
    changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return known_; });
    return copied_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool known_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  std::vector<DeviceReady> copied_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage
