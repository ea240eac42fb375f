#pragma once
#include <memory>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>

namespace meshstage::detail {

/// Connections to a server of which each call in progress needs one for itself. One that broke is
/// simply not given back. Threads: any.
template <class T>
class LeasePool {
 public:
  /// Null if none is idle.
  [[nodiscard]] std::unique_ptr<T> take() {
    const MutexLock lock(mutex_);
    if (idle_.empty()) return nullptr;
    auto taken = std::move(idle_.back());
    idle_.pop_back();
    return taken;
  }
  void give_back(std::unique_ptr<T> one) {
    const MutexLock lock(mutex_);
    idle_.push_back(std::move(one));
  }
  /// Ends all that are idle: what broke one may have broken them all.
  void clear() {
    std::vector<std::unique_ptr<T>> ended;
    const MutexLock lock(mutex_);
    ended.swap(idle_);
  }

 private:
  Mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage::detail
