#pragma once
#include <cstdint>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/own_step.hpp>
#include <meshstage/core/replicate/persister.hpp>
#include <meshstage/core/replicate/slots.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/tree/node.hpp>

namespace meshstage::replicate {

/// What the trainer's thread does itself: planning and capturing a step, comparing and restoring an
/// image, copying out what is held. It waits at the gate for the rest.
/// Threads: the trainer's.
class Trainer {
 public:
  Trainer(Engine& engine, OwnStep& own, Slots& slots, Persister& persister);

  /// As Checkpointer::recover, stage, finish, held; end_generation as Agent's.
  Recovered recover(Value& state);
  Staging stage(const Value& state, std::uint64_t step);
  void finish();
  void end_generation(const std::string& why);
  [[nodiscard]] Replica held(int ward, const NodeRegistry& registry);

 private:
  [[nodiscard]] std::shared_ptr<StageJob> make_job(const Value& state, std::uint64_t step);
  [[nodiscard]] PlanOptions plan_options(const Value& state, const std::set<int>& apart) const;
  void check_room_for(std::uint64_t image_bytes, std::uint64_t replica_bytes);
  [[nodiscard]] std::shared_ptr<const ReadLease> compare(const RecoverCommand& command,
                                                         const Value& state);
  [[nodiscard]] Recovered restore(const RecoverCommand& command,
                                  const std::shared_ptr<const ReadLease>& image, Value& state,
                                  Deadline deadline);
  /// Warns once where Python's safetensors would refuse the files of what is staged.
  void say_what_python_refuses();
  /// From now on own slots are page-locked: tensors are on that device.
  void use_device(Device device);
  /// The slots that hold a ward's replica and, if it borrows, this rank's image of the same step.
  [[nodiscard]] std::vector<SlotKey> hold_replica(int ward);
  void persist_newest(Deadline deadline);

  Engine& engine_;
  OwnStep& own_;
  Slots& slots_;
  Persister& persister_;
  std::shared_ptr<const StagingPlan> plan_;
  bool header_told_ = false;
  std::set<int> plan_apart_;                          ///< Lenders that the plan leaves alone.
  std::pair<std::uint64_t, std::uint64_t> room_for_;  ///< Image and replica bytes that had room.
};

}  // namespace meshstage::replicate
