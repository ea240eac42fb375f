#pragma once
#include <memory>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/stage_job.hpp>
#include <meshstage/core/stage/device_copies.hpp>

namespace meshstage::replicate {

/// Both ends of a step's copies. If the step fails while devices still copy, the slot stays leased
/// until they are done.
struct DeviceEnds {
  StagingSource source;
  WriteLease lease;
};

/// The work of Copier's thread: copies the trainer's tensors into the own slot, digests them in the
/// same pass, and seals the slot. A crew (`mesh-copy`) helps.
/// Threads: ms-copy.
class ImageWriter {
 public:
  explicit ImageWriter(Engine& engine);

  /// Returns OwnSealed or OwnFailed. Any exception meanwhile, of a user's Pace too, fails the step,
  /// and staged() throws it.
  [[nodiscard]] protocol::Event write(StageJob& job, const ImageIdentity& identity);

 private:
  /// Copies the tensors and digests them; returns when the image's tensors are final.
  void copy_tensors(StageJob& job, const std::shared_ptr<DeviceEnds>& ends);
  /// The trainer may change its tensors from now on.
  void tell_staged(StageJob& job);
  [[nodiscard]] protocol::OwnSealed sealed_event(const StageJob& job, const ImageInfo& info) const;

  Engine& engine_;
  detail::DeviceStreams streams_;
  Crew crew_;
};

}  // namespace meshstage::replicate
