#pragma once
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/device/runtime.hpp>

namespace meshstage {

/// Says when a step has read the trainer's tensors. For each device that is the event behind its
/// copies. The events are known when all copies are issued; if none will be issued, there are no
/// events. For the CPU it is a call of set_cpu_read(). Threads: any.
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
  /// Tensors of the CPU are not read any more.
  void set_cpu_read() {
    const MutexLock lock(mutex_);
    cpu_read_ = true;
    changed_.notify_all();
  }
  void wait_cpu_read() {
    MutexLock lock(mutex_);
    changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return cpu_read_; });
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool known_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool cpu_read_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  std::vector<DeviceReady> copied_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage
