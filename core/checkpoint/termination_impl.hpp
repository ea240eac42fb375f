#pragma once
#include <chrono>

namespace meshstage::detail {

/// Handles SIGTERM while run() runs, if the options ask for it. While training goes on, the first
/// SIGTERM is a wish that run() looks for between steps. Otherwise, and after the limit, SIGTERM
/// ends the process as it does without a handler. In a process one object at a time watches, the
/// first one made. It leaves a handler that the program has alone.
class Termination {
 public:
  Termination(bool watch, std::chrono::milliseconds within);
  Termination(const Termination&) = delete;
  Termination& operator=(const Termination&) = delete;
  /// Puts the default handler back, unless the program has installed another one meanwhile.
  ~Termination();

  /// True: training goes on, so a wish can be fulfilled. False: a generation is being formed or
  /// recovered; a signal that came before, or comes now, ends the process.
  void training(bool on) noexcept;
  /// True once after a signal came: the caller then makes the wish.
  [[nodiscard]] bool take() noexcept;

 private:
  bool watching_ = false;
  bool taken_ = false;
};

}  // namespace meshstage::detail
