#pragma once
#include <csignal>
#include <initializer_list>
#include <optional>
#include <vector>

#include "tools/process/process.hpp"

namespace meshstage::tools {

/// Turns signals into readable events for as long as it lives. SIGCHLD is always one of them.
/// Blocks them in the calling thread; make it before there are other threads.
class Signals {
 public:
  explicit Signals(std::initializer_list<int> wanted = {SIGINT, SIGTERM, SIGHUP});
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  [[nodiscard]] int descriptor() const { return descriptor_.get(); }
  /// Takes what has arrived, in order, SIGCHLD left out.
  std::vector<int> take_all();
  /// Takes what has arrived: the last signal that asks this program to end, if any.
  std::optional<int> take();

 private:
  sigset_t before_{};
  Descriptor descriptor_;
};

}  // namespace meshstage::tools
