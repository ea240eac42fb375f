#pragma once
#include <atomic>
#include <cstdint>
#include <filesystem>
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

/// As it begins a step all ranks keep each other busy until a file is there. So whoever looks at
/// the job meanwhile sees a healthy one, which does not end.
struct Hold {
  std::uint64_t step = 0;
  std::filesystem::path file;

  /// "87:/tmp/go-on". Throws std::invalid_argument, naming the form.
  static Hold parse(std::string_view text);
};

/// Carries the faults out, once each, and reports every protocol point.
/// Threads: passed() on any, begin_step() on the trainer's.
class Faults {
 public:
  /// Does nothing more once the file `until` is there; empty: goes on to the end.
  Faults(std::vector<Fault> faults, const Report& report, std::filesystem::path until = {});
  /// Training of `step` begins. Dies or stops here if a fault without a point says so.
  void begin_step(std::uint64_t step);
  /// A protocol point was passed. Dies or stops here if a fault names it and its step is reached:
  /// by the step that is staged for points of a round, by training for the others.
  void passed(const meshstage::PointEvent& event);
  /// No fault comes any more.
  [[nodiscard]] bool over() const;

 private:
  struct Armed {
    Fault fault;
    std::atomic<bool> done = false;
  };
  /// `at`: the point where it happens; null at the begin of a step.
  void carry_out(Armed& armed, const meshstage::PointEvent* at = nullptr);

  std::vector<Armed> armed_;
  const Report& report_;
  std::filesystem::path until_;
  std::atomic<std::uint64_t> begun_ = 0;
};

}  // namespace trainer
