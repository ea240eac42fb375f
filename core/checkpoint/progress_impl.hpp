#pragma once
#include <chrono>
#include <functional>
#include <string>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/replicate/observer.hpp>

namespace meshstage::detail {

/// Tells a person how long a wait has taken. Calls `tell(seconds since the wait began)` on a thread
/// of its own (`ms-progress`): first after `first`, then every 10 s, until it is destroyed. An
/// exception of `tell` is printed and ends the calls.
class Progress {
 public:
  Progress(std::chrono::milliseconds first, std::function<void(std::chrono::seconds)> tell);

 private:
  StoppableThread thread_;
};

/// The point of the protocol that this rank passed last: for a line about a long recovery.
/// Threads: any.
class LastPoint {
 public:
  void note(const PointEvent& event) {
    const MutexLock lock(mutex_);
    event_ = event;
  }
  [[nodiscard]] std::string text() const {
    const MutexLock lock(mutex_);
    std::string text(event_.name.empty() ? "nothing yet" : event_.name);
    if (event_.chunks > 0) {
      text += " " + std::to_string(event_.chunk) + "/" + std::to_string(event_.chunks);
    }
    if (event_.peer >= 0) text += ", rank " + std::to_string(event_.peer);
    return text;
  }

 private:
  mutable Mutex mutex_;
  PointEvent event_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage::detail
