#pragma once
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/device/runtime.hpp>

namespace meshstage {

/// For each device the event behind its copies of a step. Known as soon as the copies are issued,
/// or when it is sure that none will be issued: then there are no events.
/// Threads: any.
class DevicesStaged {
 public:
  /// Sets the events. Only the first call counts.
  void set(std::vector<DeviceReady> copied) {
    const MutexLock lock(mutex_);
    if (std::exchange(known_, true)) return;
    copied_ = std::move(copied);
    changed_.notify_all();
  }
  /// Waits until the events are known.
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
