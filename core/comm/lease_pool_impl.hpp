#pragma once
#include <memory>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>

namespace meshstage::detail {

/// A pool of connections to a server: each call in progress takes one. A connection that broke is
/// not given back. Threads: any.
template <class T>
class LeasePool {
 public:
  /// Takes an idle connection; null if there is none.
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
  /// Ends all idle connections, because the cause that broke one may have broken all.
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
