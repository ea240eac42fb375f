#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/replicate/results.hpp>

namespace meshstage {

/// How Checkpointer::run() trains. Every rank gives the same options.
struct RunOptions {
  /// run() stages after every n-th step, and after the last step in any case.
  std::uint64_t stage_every = 1;
  /// False: a step begins when the step being staged has been copied, so the body may change the
  /// state at once. True: a step begins sooner, and the body calls RunStep::before_update() before
  /// its first change; a body that does not is an error.
  bool overlap = false;
  /// If more generations than this end in a row without a new complete step, run() throws
  /// Unrecoverable: a replacement that dies again and again ends the job.
  int max_losses = 10;
  /// If more staged steps than this fail in a row, on whichever rank, run() throws Unrecoverable
  /// with the last cause.
  int max_failed_steps = 10;
  /// True: SIGTERM asks for the end of the job, like Checkpointer::request_termination(). All ranks
  /// end at the same step, which is on disk, and run() returns its number. While this rank forms a
  /// generation or recovers, and after `terminate_within`, SIGTERM ends the process at once, as it
  /// does without a handler. If the program has a handler for SIGTERM, run() leaves it alone, and
  /// this option does nothing. Off by default: a library installs no handlers unasked.
  bool on_terminate = false;
  /// How long the job may go on after SIGTERM. Must be shorter than the time that the launcher
  /// gives (torchrun and Slurm: 30 s), and longer than two of your `stage_every` steps.
  std::chrono::milliseconds terminate_within{20'000};
  /// run() calls this after each recovery, before the first step of a generation. Read scalars from
  /// the state here, and make objects that live as long as Checkpointer::group(). May throw what
  /// the body may throw.
  std::function<void(const Recovered&)> recovered = {};
  /// True: run() ends with finish(), which removes the vaults. False: the job goes on with another
  /// run() or stage(), and the caller handles a death after this run().
  bool finish = true;
};

/// One step of a run, as its body sees it. Valid until the body returns.
class MESHSTAGE_API RunStep {
 public:
  /// How many steps were trained before this one: 0 for the first step. The same on every rank.
  /// After a recovery the same numbers come again.
  [[nodiscard]] std::uint64_t number() const noexcept { return number_; }
  /// For collectives among the ranks; see Checkpointer::group().
  [[nodiscard]] ProcessGroup& group() const noexcept { return *group_; }
  /// For collectives on memory of this rank's device; see Checkpointer::device_group(). Throws
  /// InvalidState if CheckpointerOptions::device_group is not given.
  [[nodiscard]] ProcessGroup& device_group() const;
  /// Returns when the state may be changed. CPU tensors are copied by then. Devices may still copy
  /// theirs: change device tensors only by work issued on CheckpointerOptions::streams, which waits
  /// for these copies. Does nothing at a second call, and without RunOptions::overlap. Throws
  /// InvalidState if one of the streams is being captured into a graph.
  void before_update();
  /// Makes this step the last: run() stages it and returns. All ranks must call stop() at the same
  /// step, so decide by a value that is equal on all ranks (an all-reduced loss, not a clock).
  void stop() noexcept { stopped_ = true; }

 private:
  friend class Run;
  RunStep(std::uint64_t number, ProcessGroup& group, ProcessGroup* device_group, Staging& last,
          std::span<const TrainerStream> streams)
      : number_(number),
        group_(&group),
        device_group_(device_group),
        last_(&last),
        streams_(streams) {}

  std::uint64_t number_;
  ProcessGroup* group_;
  ProcessGroup* device_group_;  ///< Null without CheckpointerOptions::device_group.
  Staging* last_;               ///< The step being staged.
  std::span<const TrainerStream> streams_;
  bool may_change_ = false;
  bool stopped_ = false;
};

/// Trains one step: reads and changes the state, and may throw anything. run() treats RejoinNeeded
/// (from the group) as the end of the generation; any other exception ends run() and reaches the
/// caller.
using RunBody = std::function<void(RunStep&)>;

}  // namespace meshstage
