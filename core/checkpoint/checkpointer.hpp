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
/// Host memory: four times the state's bytes for each rank (two own slots, two for its ward), less
/// what replicas borrow.
/// Threads: one caller (the trainer's thread). Owns one agent thread, one copying thread, one
/// exchange thread, one persisting thread and its backend's, and one that tells how long it waits
/// while a generation is formed or a step recovered; all end with it.
/// Errors: RejoinNeeded (PeerLost, or PeerSilent) from any call, recover() and finish() too, or
/// from a transfer of group(), ends the generation: only rejoin() and destruction are useful, other
/// calls throw the same error again. Other errors are for a person. Destruction, an exception or a
/// crash leaves the vault for the next start; only finish() removes it. To the other ranks each of
/// the three is a loss: they get PeerLost, also out of a barrier that not all of them have left. A
/// RejoinNeeded without rank() names nobody: the generation broke by itself (a damaged message),
/// and rejoin() goes on with all.
class MESHSTAGE_API Checkpointer {
 public:
  /// Collective. Attaches the vault and forms a generation with all ranks.
  /// Throws InvalidArgument (options, environment), Timeout (ranks that did not come, or no Store
  /// answered), InvalidState (ranks whose world size, holders, lenders or block size differ),
  /// OutOfMemory.
  explicit Checkpointer(CheckpointerOptions options);
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;
  ~Checkpointer();

  /// Collective. Brings the newest step that all ranks together can still produce into `state`, in
  /// place: tensors keep their storages, scalars are replaced. If there is none, `state` is what
  /// training begins with: it is staged as step 0, and recover() returns when that is complete,
  /// with Source::kNothing. So until the first recover() has returned, leave the state alone.
  /// Throws StructureMismatch (first differing path; nothing was touched), Unrecoverable (names the
  /// ranks without an image), OutOfMemory, RejoinNeeded, and InvalidState if three
  /// recoveries in a row ended by no rank's death (step 0 failed, say).
  Recovered recover(Dict& state);

  /// Starts staging `state` as `step`, which must be larger than any before in this generation.
  /// Returns at once; tensors may change when staged() is ready; scalars are taken before it
  /// returns. Needs a recover() first. Throws InvalidState, OutOfMemory (at the first call or when
  /// the state grew: needed, available, which limit, remedy), RejoinNeeded.
  Staging stage(const Dict& state, std::uint64_t step);

  /// After RejoinNeeded: leaves the broken generation and forms the next one with all ranks,
  /// replacements among them. Follow it with recover(). A rank that dies meanwhile is waited for,
  /// as its replacement. Throws Timeout at the forming deadline, and InvalidState ("fenced") if
  /// this process itself was replaced meanwhile; neither is a RejoinNeeded, and every other call
  /// then throws the same again until a rejoin() succeeds.
  Checkpointer& rejoin();

  /// Collective. Recovers, trains up to `steps` steps by calling `body` for each, stages, and after
  /// each death or silence rejoins, recovers and trains on: what the loop above does, and more of
  /// it. Returns the number of steps trained, when the last one is complete on every rank (and,
  /// unless RunOptions::finish is false, the job finished). The body must give the same for a step
  /// that is trained again. Throws what the body throws, what recover(), rejoin(), stage() and
  /// finish() throw except RejoinNeeded, Unrecoverable beyond the limits of RunOptions, and
  /// InvalidState if this generation has recovered by another call than run().
  std::uint64_t run(Dict& state, std::uint64_t steps, const RunBody& body,
                    const RunOptions& options = {});

  /// For the trainer's own collectives (and mesh's MeshGroups); of the current generation. A death
  /// aborts it with PeerLost, a silent rank with PeerSilent. Each wait in it ends a second after
  /// options.deadline at the latest, so its operations need no deadline. After rejoin(), finish()
  /// or destruction it throws; take the next generation's then.
  [[nodiscard]] std::shared_ptr<ProcessGroup> group() const;
  [[nodiscard]] int rank() const noexcept;
  [[nodiscard]] int world_size() const noexcept;
  [[nodiscard]] std::uint64_t generation() const noexcept;
  [[nodiscard]] const std::string& job() const noexcept;
  [[nodiscard]] Stats stats() const;

  /// The ranks whose replicas this one holds, ascending.
  [[nodiscard]] const std::vector<int>& wards() const noexcept;
  /// What this rank holds for `ward`: its state dict of the newest step that this rank knows to be
  /// complete, copied out of the vault. Not collective; may be called between any two steps, also
  /// while one is being staged. `registry` decodes node types (dtensor::register_nodes and its
  /// like); a type that is not in it becomes an OpaqueNode. Throws InvalidArgument if `ward` is
  /// none of wards(), NotFound if no step is complete yet, CorruptData if the replica has rotted,
  /// InvalidState before recover() and for a replica that borrows from a third rank
  /// (CheckpointerOptions::borrowed), OutOfMemory, and RejoinNeeded as the others.
  [[nodiscard]] Replica held(int ward, const NodeRegistry& registry = {});

  /// The step that is staged next goes to disk on every rank, whatever persist_every is; its
  /// Staging::persisted() tells when. One rank's wish is enough: it travels with the step's vote.
  void persist_now();
  /// The job is to end, on all ranks at the same step. One rank's wish is enough: it travels with
  /// the vote of the step that is staged next. run() then ends by itself; a loop of one's own asks
  /// ending(). Does nothing else, so the program may call it from any thread, at any time (but not
  /// from a signal handler: see RunOptions::on_terminate).
  void request_termination();
  /// All ranks have agreed that the step that is staged next is the last: stage it, wait for its
  /// outcome, and if that is kComplete call finish(). To be asked right before stage(), when the
  /// outcome of the step before is known: then all ranks get the same answer.
  [[nodiscard]] bool ending() const;

  /// Collective; the orderly end of a job: waits for what is in flight (persisting too), writes the
  /// newest complete step to disk (unless persist_every is 0), agrees, then removes every rank's
  /// vault. Files on disk stay. The Checkpointer is closed afterwards. Throws IoError if this rank
  /// cannot write: the step stays in memory, and finish() may be called again.
  void finish();

 private:
  class Impl;
  std::unique_ptr<Impl, DeleteHere> impl_;  // a forked child's copy does nothing
};

}  // namespace meshstage
