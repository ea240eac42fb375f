#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/replicate/results.hpp>

namespace meshstage {

/// How Checkpointer::run() trains. The same on every rank.
struct RunOptions {
  /// Stage after every n-th step; the last one is staged in any case.
  std::uint64_t stage_every = 1;
  /// False: a step begins when what is being staged was copied, so the body may change the state at
  /// once. True: it begins sooner, and the body calls RunStep::before_update() before its first
  /// change; a body that does not is an error.
  bool overlap = false;
  /// So many generations in a row may end before another step is complete; one more, and run()
  /// throws Unrecoverable: a replacement that dies at once again and again ends the job.
  int max_losses = 10;
  /// So many staged steps in a row may fail (on any rank's account); one more, and run() throws
  /// Unrecoverable with the last cause.
  int max_failed_steps = 10;
  /// SIGTERM asks for the end of the job, as Checkpointer::request_termination(): all ranks end at
  /// the same step, which is on disk, and run() returns its number. While this rank forms a
  /// generation or recovers, and after `terminate_within`, the signal ends the process at once, as
  /// it does without a handler. A handler that the program has is left alone, and this does nothing
  /// then. Off by default: a library installs no handlers unasked.
  bool on_terminate = false;
  /// Must be shorter than the time that the launcher gives (torchrun and Slurm: 30 s), and longer
  /// than two of your `stage_every` steps.
  std::chrono::milliseconds terminate_within{20'000};
  /// Called after each recovery, before the first step of a generation: to take scalars out of the
  /// state, to make what lives as long as Checkpointer::group(). May throw what the body may throw.
  std::function<void(const Recovered&)> recovered = {};
  /// End with finish(): all ranks are done, the vaults go. False: the job goes on, with another
  /// run() or stage(); what then dies is the caller's to handle.
  bool finish = true;
};

/// One step of a run, as its body sees it. Good until the body returns.
class MESHSTAGE_API RunStep {
 public:
  /// The steps that were trained before: 0 for the first. The same on every rank; after a recovery
  /// numbers come again.
  [[nodiscard]] std::uint64_t number() const noexcept { return number_; }
  /// For collectives among the ranks; see Checkpointer::group().
  [[nodiscard]] ProcessGroup& group() const noexcept { return *group_; }
  /// Returns when the state may be changed: what is being staged was copied. Does nothing at its
  /// second call, and without RunOptions::overlap.
  void before_update();
  /// Makes this step the last one: it is staged, and run() returns. For all ranks at the same step,
  /// so decide by what they have in common (an all-reduced loss, not a clock).
  void stop() noexcept { stopped_ = true; }

 private:
  friend class Run;
  RunStep(std::uint64_t number, ProcessGroup& group, Work<void>& staged)
      : number_(number), group_(&group), staged_(&staged) {}

  std::uint64_t number_;
  ProcessGroup* group_;
  Work<void>* staged_;
  bool may_change_ = false;
  bool stopped_ = false;
};

/// Trains one step: reads and changes the state, and throws what it likes. RejoinNeeded (from the
/// group) is taken for the end of the generation; anything else ends run(), and the caller gets it.
using RunBody = std::function<void(RunStep&)>;

}  // namespace meshstage
