#pragma once
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>

#include <meshstage/core/async/work.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/replicate/devices_staged.hpp>
#include <meshstage/core/replicate/results.hpp>
#include <meshstage/core/stage/source_digests.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/watermark.hpp>
#include <meshstage/core/vault/slot.hpp>

namespace meshstage::replicate {

/// The promise behind Staging::staged() and before_update(): for threads and for devices' streams.
/// Only the first call counts.
class StagedPromise {
 public:
  [[nodiscard]] Work<void> work() { return host_.work(); }
  [[nodiscard]] const std::shared_ptr<DevicesStaged>& devices() const noexcept { return devices_; }
  void set_value() {
    host_.set_value();
    release();
  }
  void set_error(const std::exception_ptr& error) {
    host_.set_error(error);
    release();
  }

 private:
  // Last: a thread that waited for devices_ finds work() ready.
  void release() {
    devices_->set({});
    devices_->set_cpu_read();
  }

  Promise<void> host_;
  std::shared_ptr<DevicesStaged> devices_ = std::make_shared<DevicesStaged>();
};

/// One step on its way from the trainer to the holders. The trainer's thread makes it, the loop
/// gives it a slot, the copying thread writes the image, the sending threads read it.
struct StageJob {
  std::uint64_t step = 0;
  std::shared_ptr<const StagingPlan> plan;
  StagingSource
      source;  ///< Scalars as they were at stage(), and handles that keep the sources alive.
  std::optional<detail::SourceDigests> digests;  ///< Of the source at stage(), if asked for.
  Beside beside = Beside::kTrainer;              ///< What the processors do while it is copied.
  bool on_devices = false;                       ///< Part of the source is on devices.
  bool snapshot = false;                         ///< That part is a snapshot of the trainer's.
  protocol::ImageSizes sizes;
  std::chrono::steady_clock::time_point requested = std::chrono::steady_clock::now();
  Promise<void> accepted;  ///< Set when the protocol took or refused the request.
  StagedPromise staged;
  Promise<Outcome> outcome;
  Promise<DiskOutcome> persisted;
  // Set by the loop when the job gets its slot, before the copying thread sees it:
  ImageId id;
  int slot = -1;
  WriteLease lease;  ///< The copying thread's from then on.
  std::span<std::byte> image;
  Watermark watermark;
  BlockDigests blocks;  ///< Each final where the watermark has passed its block.
  // The loop's thread only:
  bool decided = false;            ///< The outcome is known (or the generation broke).
  bool written = false;            ///< The copying has ended.
  bool settled = false;            ///< Both, and the gate was left.
  std::optional<Outcome> verdict;  ///< If decided, unless the generation broke before.
};

[[nodiscard]] inline double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

}  // namespace meshstage::replicate
