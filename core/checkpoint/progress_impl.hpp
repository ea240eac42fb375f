#pragma once
#include <chrono>
#include <functional>

#include <meshstage/core/async/thread.hpp>

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

}  // namespace meshstage::detail
