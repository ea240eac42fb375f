#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/checkpoint/run.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/replicate/options.hpp>
#include <meshstage/core/replicate/results.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// The facade: stages, replicates, persists and recovers one rank's state dict.
///
///     ms::Checkpointer ckpt({.job = "gpt2", .directory = "/scratch/ckpt"});
///     for (bool trained = false; !trained;) try {
///       auto step = ckpt.recover(state).step;   // in place; at the very start it stages step 0
///       ms::Staging last;
///       while (step < steps) {
///         backward(step);                       // only reads what is staged
///         last.staged().wait();                 // before it changes
///         optimizer.step();
///         if (++step % 5 == 0) last = ckpt.stage(state, step);
///       }
///       ckpt.finish();
///       trained = true;
///     } catch (const ms::RejoinNeeded&) { ckpt.rejoin(); }
///
/// Host memory: four times the state's bytes for each rank (two slots for own images, two for
/// replicas of its ward), less the bytes that replicas borrow.
///
/// Threads: one caller (the trainer's thread). The Checkpointer owns the engine's threads:
/// `ms-agent`, `ms-copy`, `ms-slots`, `ms-store`, `ms-verify`, `ms-persist` and `ms-log`, and one
/// `ms-send` and one `ms-recv` for each data peer. Up to `copy_threads` more help to copy
/// (`mesh-copy`), `ms-trace` and `ms-metrics` write what the options of these names ask for, and
/// the backend has threads of its own. Under `meshstage run`, `ms-report` reports to it. While a
/// generation is formed or a step recovered, one more thread reports how long the wait has taken.
/// All of them end with the Checkpointer.
///
/// Errors: RejoinNeeded (PeerLost or PeerSilent) ends the generation. Any call may throw it,
/// recover() and finish() too, and so may a transfer of group(). Then call rejoin() or destroy the
/// Checkpointer; other calls throw the same error again. A RejoinNeeded without rank() names no
/// lost rank: the generation broke without a death (a damaged message), and rejoin() goes on with
/// all ranks. A person must look at all other errors.
///
/// Only finish() removes the vault. Destruction, an exception or a crash leaves it for the next
/// start. After each of these three the other ranks get PeerLost, also in a barrier that some of
/// them have not left yet.
class MESHSTAGE_API Checkpointer {
 public:
  /// Collective. Attaches the vault and forms a generation with all ranks. Throws:
  /// - InvalidArgument: wrong options or environment;
  /// - Timeout: some rank did not come, or no Store answered;
  /// - InvalidState: the ranks' world size, holders, lenders, block size or use of device_group
  ///   differ, this rank's device_group cannot be made, or another start of the job is healthy;
  /// - OutOfMemory.
  explicit Checkpointer(CheckpointerOptions options);
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;
  ~Checkpointer();

  /// Collective. Restores the newest step that all ranks together can still produce into `state`,
  /// in place: tensors keep their storages, scalars are replaced. If there is no such step,
  /// recover() stages `state` as step 0 and returns with Source::kNothing when step 0 is complete.
  /// The program must not change `state` before that. Throws StructureMismatch (first differing
  /// path; nothing was touched), Unrecoverable (names the ranks without an image), OutOfMemory and
  /// RejoinNeeded. Throws InvalidState if three recoveries in a row ended without a rank's death,
  /// for example because step 0 failed. Throws InvalidState if this generation's recover() has
  /// returned or thrown before: call rejoin() first.
  Recovered recover(Dict& state);

  /// Starts staging `state` as `step`, which must be larger than any step before in this
  /// generation. Returns at once: scalars are copied before it returns, and tensors may change when
  /// staged() is ready. Call recover() first. Throws InvalidState, RejoinNeeded, and OutOfMemory at
  /// the first call or when the state has grown (bytes needed, bytes available, which limit,
  /// remedy).
  Staging stage(const Dict& state, std::uint64_t step);

  /// Waits until `staging.outcome()` is ready, as run() and the next stage() do. There is no time
  /// limit as long as the step's images move, however slowly. Every options.deadline wait() tells
  /// the other ranks that this rank waits. If a rank does not stage the step, the generation then
  /// ends with PeerSilent naming that rank; a plain outcome().wait() never finds such a rank.
  /// Throws RejoinNeeded.
  void wait(Staging& staging);
  /// For a program that waits for an outcome in its own way: tells the other ranks that this rank
  /// waits, as wait() does. Call it when the wait has taken options.deadline, and again each
  /// deadline. Does nothing if no outcome is pending.
  void tell_waiting();

  /// After RejoinNeeded: leaves the broken generation and forms the next one with all ranks,
  /// replacements among them. Call recover() next. If a rank dies meanwhile, rejoin() waits for its
  /// replacement. Throws Timeout at the forming deadline, and Fenced if this process was replaced
  /// meanwhile. Neither is a RejoinNeeded; until a rejoin() succeeds, every other call throws the
  /// same error again.
  Checkpointer& rejoin();

  /// Collective. Runs the loop above: recovers, calls `body` for each step up to `steps` and
  /// stages. After each death or silence of a rank it rejoins, recovers and trains on. Returns the
  /// number of steps trained, once the last step is complete on every rank and the job is finished
  /// (unless RunOptions::finish is false). run() may train a step again after a recovery: the step
  /// must give the same result. Throws the errors of the body, and those of recover(), rejoin(),
  /// stage() and finish() except RejoinNeeded. Throws Unrecoverable beyond the limits of
  /// RunOptions, and InvalidState if recover() was called directly in this generation.
  std::uint64_t run(Dict& state, std::uint64_t steps, const RunBody& body,
                    const RunOptions& options = {});

  /// The current generation's group, for the trainer's own collectives (and mesh's MeshGroups). A
  /// death aborts the group with PeerLost, a silent rank with PeerSilent. A wait in the group lasts
  /// as long as bytes of the group move between any two ranks, however slowly, so its operations
  /// need no deadline. It ends with PeerSilent when none has moved in the whole job for
  /// options.deadline and a second, because a trainer hangs or the ranks' calls do not match. The
  /// error names the rank that the wait was for, which may itself wait for another rank. README.md
  /// beside this file has figures for slow links. After rejoin(), finish() or destruction the group
  /// throws; call group() again in the next generation.
  [[nodiscard]] std::shared_ptr<ProcessGroup> group() const;
  /// The current generation's group for the trainer's collectives on its device's memory, over NCCL
  /// (core/comm/nccl/group.hpp lists what it can do):
  ///
  ///     ms::Checkpointer ckpt({.job = "gpt2", .streams = {{gpu, stream}}, .device_group = gpu});
  ///     all_reduce(*ckpt.device_group(), gradient_bytes, Element::kBF16, ReduceOp::kAvg);
  ///
  /// A death or a silent rank ends it at every rank, wherever an operation waits; each generation
  /// has a new one. A collective must be done within options.deadline and a second of its call; the
  /// time until the last rank calls it counts. Throws what group() throws, and InvalidState if
  /// CheckpointerOptions::device_group is not given (that option says what must never run beside
  /// the group).
  [[nodiscard]] std::shared_ptr<ProcessGroup> device_group() const;
  [[nodiscard]] int rank() const noexcept;
  [[nodiscard]] int world_size() const noexcept;
  /// Larger for each later generation, also of later runs. Messages show only its low bits
  /// (generation_in_run(), core/generation).
  [[nodiscard]] std::uint64_t generation() const noexcept;
  [[nodiscard]] const std::string& job() const noexcept;
  [[nodiscard]] Stats stats() const;

  /// The ranks whose replicas this rank holds, ascending.
  [[nodiscard]] const std::vector<int>& wards() const noexcept;
  /// A copy of the replica that this rank holds of `ward`: the ward's state dict of the newest step
  /// that this rank knows to be complete. Not collective; may be called between any two steps, also
  /// while a step is being staged. `registry` decodes node types (see dtensor::register_nodes); a
  /// type that it lacks becomes an OpaqueNode. Throws InvalidArgument if `ward` is not in wards(),
  /// NotFound if no step is complete yet, CorruptData if the replica has rotted, OutOfMemory, and
  /// RejoinNeeded. Throws InvalidState before recover(), and for a replica that borrows from a
  /// third rank (CheckpointerOptions::borrowed).
  [[nodiscard]] Replica held(int ward, const NodeRegistry& registry = {});

  /// Makes every rank write the next staged step to disk, whatever persist_every is; that step's
  /// Staging::persisted() is ready when the files are there. One rank's call is enough: the wish
  /// travels with the rank's vote on the step.
  void persist_now();
  /// Asks that the job ends, on all ranks at the same step. One rank's call is enough: the wish
  /// travels with the rank's vote on the next staged step. run() then ends by itself; a program
  /// with a loop of its own calls ending(). This call only records the wish, so any thread may make
  /// it at any time (but not a signal handler: see RunOptions::on_terminate).
  void request_termination();
  /// True when all ranks have agreed that the next staged step is the last. Then stage that step,
  /// wait for its outcome, and call finish() if the outcome is kComplete. Call ending() right
  /// before stage(), when the outcome of the previous step is known: then all ranks get the same
  /// answer.
  [[nodiscard]] bool ending() const;

  /// Collective; the orderly end of a job. Waits for steps that are being replicated or persisted,
  /// writes the newest complete step to disk (unless persist_every is 0), agrees with all ranks,
  /// then removes every rank's vault. Files on disk stay. The Store notes that the job has
  /// finished, so the next job with this id begins from files alone. The Checkpointer is closed
  /// afterwards. Call recover() first, because only a recovery finds the newest complete step;
  /// without it finish() throws InvalidState at once, and the vault stays. Throws IoError if this
  /// rank cannot write (the step stays in memory), and Timeout if some rank has not called finish()
  /// within the forming deadline. After either of these finish() may be called again.
  void finish();

 private:
  class Impl;
  std::unique_ptr<Impl, DeleteHere> impl_;  // a forked child's copy does nothing
};

}  // namespace meshstage
