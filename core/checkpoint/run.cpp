#include <meshstage/core/checkpoint/run.hpp>

#include <optional>
#include <string>
#include <utility>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/checkpoint/run_impl.hpp>
#include <meshstage/core/checkpoint/termination_impl.hpp>

namespace meshstage {
namespace {

/// Waits until the copy is over. An error of the copy fails the step on every rank, and is counted
/// with the outcome; so only the end of the generation is thrown here.
void wait_copied(Work<void>& staged) {
  try {
    staged.wait();
  } catch (const RejoinNeeded&) {
    throw;
  } catch (const Error&) {
    return;
  }
}

}  // namespace

void RunStep::before_update() {
  if (may_change_) return;
  last_->before_update(streams_);
  if (last_->staged().ready()) wait_copied(last_->staged());
  may_change_ = true;
}

ProcessGroup& RunStep::device_group() const {
  if (device_group_ != nullptr) return *device_group_;
  throw InvalidState("RunStep::device_group() needs CheckpointerOptions::device_group");
}

/// One call of Checkpointer::run().
class Run {
 public:
  Run(detail::RunSeams seams, Dict& state, std::uint64_t steps, const RunBody& body,
      const RunOptions& options)
      : ckpt_(seams.ckpt),
        trained_(seams.trained),
        state_(state),
        steps_(steps),
        body_(body),
        options_(options),
        device_group_(seams.device_group),
        streams_(seams.streams),
        waits_when_busy_(seams.waits_when_busy),
        end_generation_(std::move(seams.end_generation)),
        termination_(options.on_terminate, options.terminate_within) {}

  std::uint64_t run() {
    while (true) {
      try {
        const std::uint64_t step = train();
        if (options_.finish) {
          ckpt_.finish();
        } else {
          trained_ = step;
        }
        return step;
      } catch (const RejoinNeeded& e) {
        termination_.training(false);
        count_last();
        if (++losses_ > options_.max_losses) {
          throw Unrecoverable("no step became complete in " + std::to_string(losses_) +
                              " generations in a row; the last one ended so: " + e.what());
        }
      }
      ckpt_.rejoin();  // what this throws ends the job
    }
  }

 private:
  /// Trains from a recovery to the last step, and returns when that step is complete.
  std::uint64_t train() {
    std::uint64_t step = begin();
    termination_.training(true);
    const std::shared_ptr<ProcessGroup> group = ckpt_.group();
    const std::shared_ptr<ProcessGroup> device_group = device_group_;
    for (bool stopped = false; step < steps_ && !stopped;) {
      if (termination_.take()) ckpt_.request_termination();
      if (!options_.overlap) wait_copied(last_.staged());
      RunStep now(step, *group, device_group.get(), last_, streams_);
      now.may_change_ = !options_.overlap;
      body_(now);
      if (!now.may_change_) {
        throw InvalidState("run() with overlap: the body of step " + std::to_string(step) +
                           " did not call RunStep::before_update(), so it may have changed tensors "
                           "that are still being copied");
      }
      ++step;
      stopped = now.stopped_;
      if (step == steps_ || stopped) {
        stage_last(step);
      } else if (step % options_.stage_every == 0) {
        // The outcome of the step before says whether this one is the last.
        if (waits_when_busy_) wait_outcome();
        stopped = ckpt_.ending();
        if (stopped) {
          stage_last(step);
        } else {
          stage(step);
        }
      }
    }
    return step;
  }

  std::uint64_t begin() {
    if (const auto trained = std::exchange(trained_, std::nullopt)) return *trained;
    const Recovered recovered = ckpt_.recover(state_);
    if (options_.recovered) options_.recovered(recovered);
    return recovered.step;
  }

  void stage(std::uint64_t step) {
    Staging next = ckpt_.stage(state_, step);
    if (!last_.outcome().ready()) return;  // next was left out, as WhenBusy::kSkip has it
    count(last_);
    last_ = std::move(next);
  }

  /// Waits until the last step is complete.
  void stage_last(std::uint64_t step) {
    settle();
    last_ = ckpt_.stage(state_, step);
    if (settle() == Outcome::kComplete) return;
    end_generation_("the last step, " + std::to_string(step) +
                    ", failed although no rank was lost; all ranks train it again");
  }

  /// Waits for the outcome of the step that was staged last.
  std::optional<Outcome> settle() {
    wait_outcome();
    return count(last_);
  }

  void wait_outcome() {
    if (last_.outcome().valid()) ckpt_.wait(last_);
  }

  /// Called when the generation ended. The last step's outcome counts if it is known, because
  /// another rank may have ended its run on it.
  void count_last() {
    Staging last = std::exchange(last_, {});
    if (!last.outcome().valid() || !last.outcome().ready()) return;
    try {
      (void)count(last);
    } catch (const RejoinNeeded&) {  // it ended with the generation
      return;
    }
  }

  std::optional<Outcome> count(Staging& staging) {
    if (!staging.outcome().valid()) return std::nullopt;
    const Outcome outcome = staging.outcome().get();
    if (outcome == Outcome::kComplete) {
      losses_ = failed_ = 0;
    } else if (outcome == Outcome::kFailed && ++failed_ > options_.max_failed_steps) {
      throw Unrecoverable(std::to_string(failed_) + " staged steps in a row failed, the last was " +
                          std::to_string(staging.step()) +
                          "; the warnings say on which rank, and why");
    }
    return outcome;
  }

  Checkpointer& ckpt_;
  std::optional<std::uint64_t>& trained_;
  Dict& state_;
  const std::uint64_t steps_;
  const RunBody& body_;
  const RunOptions& options_;
  const std::shared_ptr<ProcessGroup>& device_group_;
  const std::span<const TrainerStream> streams_;
  const bool waits_when_busy_;
  const std::function<void(const std::string&)> end_generation_;
  detail::Termination termination_;
  Staging last_;
  int losses_ = 0;  ///< Generations that ended since a step was complete.
  int failed_ = 0;  ///< Staged steps that failed since then.
};

std::uint64_t detail::run(RunSeams seams, Dict& state, std::uint64_t steps, const RunBody& body,
                          const RunOptions& options) {
  if (options.stage_every == 0) throw InvalidArgument("RunOptions::stage_every is 0");
  return Run(std::move(seams), state, steps, body, options).run();
}

}  // namespace meshstage
