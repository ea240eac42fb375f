#pragma once
#include <functional>
#include <memory>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/image_writer.hpp>
#include <meshstage/core/replicate/stage_job.hpp>

namespace meshstage::replicate {

/// Has the own image written, on a thread of its own (`ms-copy`; see ImageWriter).
/// Threads: the loop's.
class Copier {
 public:
  explicit Copier(Engine& engine);

  /// Starts copying a job that has its slot. `done` runs on the loop, with OwnSealed or OwnFailed.
  void copy(std::shared_ptr<StageJob> job, ImageIdentity identity,
            std::function<void(const protocol::Event&)> done);

 private:
  Engine& engine_;
  ImageWriter writer_;  ///< The worker's alone.
  Worker worker_;
};

}  // namespace meshstage::replicate
