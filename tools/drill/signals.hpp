#pragma once
#include <csignal>
#include <optional>

#include "tools/drill/rank_process.hpp"

namespace meshstage::tools::drill {

/// Turns SIGINT, SIGTERM, SIGHUP and SIGCHLD into readable events for as long as it lives.
/// Blocks them in the calling thread; make it before there are other threads.
class Signals {
 public:
  Signals();
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  [[nodiscard]] int descriptor() const { return descriptor_.get(); }
  /// Takes what has arrived: the signal that asks this program to end, if any.
  std::optional<int> take();

 private:
  sigset_t before_{};
  Descriptor descriptor_;
};

}  // namespace meshstage::tools::drill
