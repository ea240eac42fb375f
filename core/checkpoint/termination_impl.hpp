#pragma once
#include <chrono>

namespace meshstage::detail {

/// SIGTERM while run() runs, if asked for: the first one is a wish that run() looks for between
/// steps, where training goes on; otherwise, and after the limit, the process ends as it does
/// without a handler. One object of the process at a time watches, the first; it leaves a handler
/// that the program has alone.
class Termination {
 public:
  Termination(bool watch, std::chrono::milliseconds within);
  Termination(const Termination&) = delete;
  Termination& operator=(const Termination&) = delete;
  /// Puts the default back, unless the program has put something else there meanwhile.
  ~Termination();

  /// Training goes on, so a wish can be fulfilled. False: a generation is being formed or
  /// recovered; a signal that came before, or comes now, ends the process.
  void training(bool on) noexcept;
  /// A signal came; true once, for the wish to be made.
  [[nodiscard]] bool take() noexcept;

 private:
  bool watching_ = false;
  bool taken_ = false;
};

}  // namespace meshstage::detail
