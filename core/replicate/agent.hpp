#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/replicate/collective_waits.hpp>
#include <meshstage/core/replicate/loop.hpp>
#include <meshstage/core/replicate/options.hpp>
#include <meshstage/core/replicate/reads.hpp>
#include <meshstage/core/replicate/results.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {
namespace replicate {
class Log;
}

/// Runs one rank's protocol over a vault, the links and groups of a generation, and a directory of
/// files (README.md beside this file). The engine's threads all end with the agent. One caller at a
/// time.
/// Threads: the trainer's.
class MESHSTAGE_API Agent {
 public:
  /// Attaches the vault, in that epoch (see VaultOptions). `options` must be complete: the agent
  /// fills in no defaults. `log` writes to options.log; null: one is made. Throws what
  /// Vault::attach throws, and InvalidArgument on senseless options.
  Agent(CheckpointerOptions options, std::shared_ptr<Store> store, std::uint64_t vault_epoch = 0,
        replicate::TaskObserver on_task = {}, std::shared_ptr<replicate::Log> log = {});
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;
  ~Agent();

  /// The highest generation that this rank's vault has seen or that a file of the job on its disk
  /// names. New generations must be higher than those of files, also when all memory and the Store
  /// are gone.
  [[nodiscard]] std::uint64_t highest_generation() const;

  /// Enters a generation and starts its recovery.
  void begin(const Generation& generation);
  /// Leaves the generation: aborts its groups, closes its links, and waits until none of its tasks
  /// is left, so that no transfer writes any more (rule 8). Open Stagings end with the loss, or
  /// Cancelled. Idempotent.
  void leave() noexcept;
  /// Waits for what is being written to disk, and for its figures; nothing more is written. For the
  /// end, after leave().
  void stop_persisting() noexcept;

  /// As Checkpointer::recover, stage, finish.
  Recovered recover(Value& state);
  /// At rank 0, after a recover() that returned no id: the step of another number of ranks, or of
  /// another cut, from which the job goes on, if there is one. Rank 0 sends it to the other ranks.
  [[nodiscard]] protocol::OldStep old_step() const;
  /// The same, at every rank: if that step is of another cut, how it differs from this one.
  [[nodiscard]] const protocol::Failure& mismatch() const;
  /// After a recover() that returned no id, with CheckpointerOptions::any_world: the files of other
  /// numbers of ranks, and the images of those kept in memory, of which this rank has proven each
  /// byte for that recovery. They stay mapped as long as the caller keeps them. Empty the second
  /// time.
  [[nodiscard]] std::vector<std::shared_ptr<const MappedFile>> take_old_files();
  /// Whether images of another number of ranks stay in memory instead of becoming files.
  [[nodiscard]] bool keeps_old_in_memory() const;
  /// With CheckpointerOptions::any_world: call it when the first step after a recover() that
  /// returned no id is complete. Removes the images that earlier processes left in memory. Keeps
  /// images of another number of ranks if they are newer than `recovered`, the step from which the
  /// job went on.
  void free_superseded(ImageId recovered);
  /// `beside`: Beside::kNothing if the trainer waits for the step; more threads copy it then.
  Staging stage(const Value& state, std::uint64_t step, Beside beside = Beside::kTrainer);
  /// As Checkpointer::tell_waiting.
  void tell_waiting();
  /// As Checkpointer::wait. After each `length` the engine reports to the other ranks that this
  /// rank waits.
  void wait(Staging& staging, std::chrono::milliseconds length);
  void finish();
  /// As Checkpointer::request_termination and persist_now. Threads: any.
  void wish(bool end, bool persist);
  /// As Checkpointer::ending.
  [[nodiscard]] bool end_agreed() const;
  /// Ends the generation on every rank although no rank died. From then on every call throws
  /// PeerLost with `why` and without a rank. The other ranks throw the same, even if they see the
  /// end of this rank's links first, because the Store names the cause. A generation that had ended
  /// already keeps its own cause.
  void end_generation(const std::string& why);
  /// As Checkpointer::wards, held.
  [[nodiscard]] const std::vector<int>& wards() const noexcept;
  [[nodiscard]] Replica held(int ward, const NodeRegistry& registry);

  /// Throws the generation's loss, if there is one; the loss stays until begin(). Threads: any.
  void throw_if_lost() const;
  /// This rank's readings for a recovery, on all threads. The generation ends if nothing of a
  /// reading comes for a deadline. Threads: any.
  [[nodiscard]] replicate::Reads& reads() const noexcept;
  /// For the trainer's group of the generation that begin() entered last.
  [[nodiscard]] std::shared_ptr<replicate::CollectiveWaits> collective_waits() const;
  [[nodiscard]] Stats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meshstage
