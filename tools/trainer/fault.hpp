#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/replicate/observer.hpp>

#include "tools/trainer/report.hpp"

namespace trainer {

/// What a trainer does to itself, to try out what the others make of it.
struct Fault {
  enum class How : std::uint8_t { kKill, kStop };  ///< SIGKILL, SIGSTOP
  How how = How::kKill;
  std::uint64_t step = 0;  ///< Counted from 1; with a point, 0 means at once.
  std::string point;       ///< Empty: as it begins to train that step.

  /// "kill@87", "stop@40", "kill@87:chunk-received". Throws std::invalid_argument, naming the form.
  static Fault parse(std::string_view text);
};

/// Carries the faults out, once each, and reports every protocol point.
/// Threads: passed() on any, begin_step() on the trainer's.
class Faults {
 public:
  Faults(std::vector<Fault> faults, const Report& report);
  /// Training of `step` begins. Dies or stops here if a fault without a point says so.
  void begin_step(std::uint64_t step);
  /// A protocol point was passed. Dies or stops here if a fault names it and its step is reached:
  /// by the step that is staged for points of a round, by training for the others.
  void passed(const meshstage::PointEvent& event);

 private:
  struct Armed {
    Fault fault;
    std::atomic<bool> done = false;
  };
  void carry_out(Armed& armed);

  std::vector<Armed> armed_;
  const Report& report_;
  std::atomic<std::uint64_t> begun_ = 0;
};

}  // namespace trainer
