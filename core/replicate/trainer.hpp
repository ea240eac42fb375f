#pragma once
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/own_step.hpp>
#include <meshstage/core/replicate/persister.hpp>
#include <meshstage/core/replicate/slots.hpp>
#include <meshstage/core/stage/device_snapshot.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/tree/node.hpp>

namespace meshstage::replicate {

/// The work of the trainer's own thread: planning and capturing a step, comparing and restoring an
/// image, copying out a held replica. For everything else it waits at the gate.
/// Threads: the trainer's.
class Trainer {
 public:
  Trainer(Engine& engine, OwnStep& own, Slots& slots, Persister& persister);

  /// As Checkpointer::recover, finish, held; end_generation as Agent's.
  Recovered recover(Value& state);
  [[nodiscard]] protocol::OldStep old_step() const { return old_; }                ///< As Agent's.
  [[nodiscard]] const protocol::Failure& mismatch() const { return mismatch_; }    ///< As Agent's.
  [[nodiscard]] bool keeps_old_in_memory() const;                                  ///< As Agent's.
  [[nodiscard]] std::vector<std::shared_ptr<const MappedFile>> take_old_files() {  ///< As Agent's.
    return std::exchange(old_files_, {});
  }
  void free_superseded(ImageId recovered);                               ///< As Agent's.
  Staging stage(const Value& state, std::uint64_t step, Beside beside);  ///< As Agent's.
  /// As Agent's.
  void tell_waiting();
  void wait(Staging& staging, std::chrono::milliseconds length);
  void finish();
  void end_generation(const std::string& why);
  [[nodiscard]] Replica held(int ward, const NodeRegistry& registry);

 private:
  /// Reports to the other ranks after each `length` that this rank's trainer waits (rule 15).
  [[nodiscard]] Patience patience(std::chrono::milliseconds length);
  /// Waits for the answer of a task on the loop. Throws if the loop hangs.
  void wait_for_engine(Work<void>& work) const;
  [[nodiscard]] Loss engine_hangs() const;
  /// The step in flight cannot be staged here: it fails for all ranks.
  void vote_no(std::uint64_t step, const std::exception_ptr& error) noexcept;
  [[nodiscard]] std::shared_ptr<StageJob> make_job(const Value& state, std::uint64_t step);
  [[nodiscard]] PlanOptions plan_options(const Value& state, const std::set<int>& apart) const;
  void check_room_for(std::uint64_t image_bytes, std::uint64_t replica_bytes);
  [[nodiscard]] std::shared_ptr<const ReadLease> compare(const RecoverCommand& command,
                                                         const Value& state);
  [[nodiscard]] Recovered restore(const RecoverCommand& command,
                                  const std::shared_ptr<const ReadLease>& image, Value& state,
                                  Deadline deadline);
  /// Warns once if Python's safetensors would refuse the files of the staged state.
  void say_what_python_refuses();
  /// Page-locks own slots from now on, because tensors are on that device.
  void use_device(Device device);
  /// Copies the job's tensors inside their devices, if the user wants that and there is room.
  void take_snapshot(StageJob& job);
  void count_snapshot();
  /// Holds the slots of a ward's replica and, if the replica borrows, of this rank's image of the
  /// same step. Returns them.
  [[nodiscard]] std::vector<SlotKey> hold_replica(int ward);
  void persist_newest(Deadline deadline);
  /// A task of the loop threw before it answered: throws the loss that the loop made of it. Returns
  /// if there is none, because the loop has ended.
  void throw_loss_behind_failure();

  Engine& engine_;
  OwnStep& own_;
  Slots& slots_;
  Persister& persister_;
  std::shared_ptr<const StagingPlan> plan_;
  std::optional<detail::DeviceSnapshot> snapshot_;
  protocol::OldStep old_;
  protocol::Failure mismatch_;
  std::vector<std::shared_ptr<const MappedFile>> old_files_;
  bool header_told_ = false;
  std::set<int> plan_apart_;  ///< Lenders from which the plan borrows nothing.
  std::pair<std::uint64_t, std::uint64_t> room_for_;  ///< Image and replica bytes with room.
};

}  // namespace meshstage::replicate
