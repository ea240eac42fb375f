#pragma once
#include <functional>
#include <memory>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/stage_job.hpp>
#include <meshstage/core/stage/device_copies.hpp>
#include <meshstage/core/stage/pace.hpp>

namespace meshstage::replicate {

/// The pace of CheckpointerOptions (null: none) while the generation lasts. Leaving the generation
/// ends the pacing, so the rest is copied at full speed.
/// Threads: any.
class PaceOfGeneration final : public Pace {
 public:
  explicit PaceOfGeneration(Pace* pace) : pace_(pace) {}
  void before(std::uint64_t bytes, Watermark&) override {
    if (pace_ != nullptr && !left_.failed()) pace_->before(bytes, left_);
  }
  void enter() noexcept { left_.reset(); }
  void leave() noexcept;

 private:
  Pace* pace_;
  Watermark left_;
};

/// Both ends of a step's copies. If the step fails while devices still copy, the slot stays leased
/// until they are done.
struct DeviceEnds {
  StagingSource source;
  WriteLease lease;
};

/// Copies the trainer's tensors into the own slot (thread `ms-copy` and its crew), digests them in
/// the same pass, and seals the slot. Any exception meanwhile, of a user's Pace too, fails the
/// step, and staged() throws it.
/// Threads: the loop's; the trainer's calls enter() and leave().
class Copier {
 public:
  explicit Copier(Engine& engine);

  /// Starts copying a job that has its slot. `done` runs on the loop, with OwnSealed or OwnFailed.
  void copy(std::shared_ptr<StageJob> job, ImageIdentity identity,
            std::function<void(const protocol::Event&)> done);
  /// enter() begins a generation. leave() ends it: the rest is copied without pacing.
  void enter() noexcept { pace_.enter(); }
  void leave() noexcept { pace_.leave(); }

 private:
  [[nodiscard]] protocol::Event write(StageJob& job, const ImageIdentity& identity);
  /// Copies the tensors and digests them; returns when the image's tensors are final.
  void copy_tensors(StageJob& job, const std::shared_ptr<DeviceEnds>& ends);
  /// The trainer may change its tensors from now on.
  void tell_staged(StageJob& job);
  [[nodiscard]] protocol::OwnSealed sealed_event(const StageJob& job, const ImageInfo& info) const;

  Engine& engine_;
  PaceOfGeneration pace_;
  detail::DeviceStreams streams_;  ///< The copying thread's alone.
  Crew crew_;                      ///< Works for the copying thread.
  Worker worker_;
};

}  // namespace meshstage::replicate
