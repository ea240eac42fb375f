// The part `own_step` of rank 0, for the tests that are its trainer and its protocol.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "tests/replicate/part_bench.hpp"
#include "tests/support/job_steps.hpp"

namespace meshstage::test {

inline constexpr ImageId kStep{PartBench::kGeneration, 5};

/// A step of rank 0 with what its trainer has of it.
struct TrainerStep {
  explicit TrainerStep(std::uint64_t step) {
    const Value state(state_of(0, step));
    job->step = step;
    job->plan = std::make_shared<const StagingPlan>(
        StagingPlan::compile(state, nullptr, {.block_bytes = 4096}));
    job->source = job->plan->capture(state).value();
    const auto& layout = job->plan->layout();
    job->sizes = {layout.image_bytes, layout.data_begin, layout.manifest_digest, 0, 0};
  }
  /// Whether the engine holds the trainer's tensors no more.
  [[nodiscard]] bool source_dropped() const { return job->source.storages.empty(); }

  std::shared_ptr<replicate::StageJob> job = std::make_shared<replicate::StageJob>();
  Work<void> accepted = job->accepted.work();
  Staging staging{job->staged.work(), job->outcome.work(), job->persisted.work(), job->step,
                  job->staged.devices()};
};

/// The trainer has step kStep in flight, and the protocol takes it unless the test says otherwise.
class StepBench : public PartBench {
 public:
  explicit StepBench(const CheckpointerOptions& options) : PartBench(options) {
    engine.gate.recovered();
    on_fed = [this](const protocol::Event& event) {
      if (const auto* requested = std::get_if<protocol::StageRequested>(&event)) {
        if (answer) answer({PartBench::kGeneration, requested->step});
      }
    };
  }
  void request(const TrainerStep& step) {
    require_in_flight();
    in_loop([&] { own.request(step.job); });
    (void)next().as<protocol::StageRequested>();
  }
  void announce(protocol::Verdict verdict, bool persist = false, ImageId id = kStep) {
    in_loop([&] {
      own.announce({id,
                    verdict,
                    verdict == protocol::Verdict::kFailed ? 1 : -1,
                    "no room",
                    {false, persist}});
    });
  }
  /// Whether the trainer may stage the next step; takes none.
  bool step_ended() {
    if (!engine.gate.enter_step(WhenBusy::kSkip, {std::chrono::seconds(20), [](std::uint32_t) {}}))
      return false;
    engine.gate.leave_step();
    return true;
  }

  std::function<void(ImageId)> answer = [this](ImageId id) { own.write({0, id, kNoImage, {}}); };

 private:
  void require_in_flight() {
    require(
        engine.gate.enter_step(WhenBusy::kSkip, {std::chrono::seconds(20), [](std::uint32_t) {}}),
        "a step is in flight");
  }
};

inline CheckpointerOptions paced(CheckpointerOptions options, Pace* pace) {
  options.pace = pace;
  return options;
}

/// The kind of error that the Work throws; nothing if it has none.
template <class T>
std::optional<ErrorKind> error_of(Work<T>& work) {
  try {
    (void)work.get(Deadline::after(std::chrono::seconds(20)));
  } catch (const Error& e) {
    return e.kind();
  }
  return std::nullopt;
}

}  // namespace meshstage::test
