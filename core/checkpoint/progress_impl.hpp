#pragma once
#include <chrono>
#include <functional>
#include <thread>

namespace meshstage::detail {

/// Tells a person how a long wait goes: calls `tell(seconds since it began)` on a thread of its
/// own, for the first time after `first`, then every 10 s, until it is destroyed. What `tell`
/// throws ends the telling, and is printed.
class Progress {
 public:
  Progress(std::chrono::milliseconds first, std::function<void(std::chrono::seconds)> tell);

 private:
  std::jthread thread_;
};

}  // namespace meshstage::detail
