#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/stage/device_copies.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage::detail {

/// Copies a state inside its devices, into memory of their own that is made once. The trainer may
/// go on when that copy is done; the slow copy to the host reads the snapshot:
///
///     auto source = plan.capture(state, streams);
///     if (snapshot.take(*source, deadline)) tell_trainer(source->ready);
///     plan.issue(*source, image, ...);  // from the snapshot, if there is one
///
/// Threads: one at a time; any thread may drop a source that take() changed.
class DeviceSnapshot {
 public:
  /// `max_bytes`: the most memory on each device; 0: as much as the GPU driver gives. `warn` gets
  /// one warning, the first time that there is not enough.
  DeviceSnapshot(std::uint64_t max_bytes, std::function<void(const std::string&)> warn);

  /// Makes memory for a snapshot of the storages on devices, unless it is there. Returns false if
  /// there is not enough; sizes that were refused are not asked for again. To grow, it waits until
  /// the snapshot before is free.
  bool reserve(std::span<const Storage> storages, Deadline deadline);
  /// Copies the source's storages on devices inside their devices, behind source.ready. Then puts
  /// the snapshot in their place, and into source.ready the events behind these copies: the trainer
  /// may change its tensors behind them. The device's runtime keeps the trainer's storages until
  /// then. Waits first until the previous snapshot is free: its source was dropped, and no device
  /// reads it. Returns false, and leaves the source as it is, if reserve() does or no storage is on
  /// a device. Throws Timeout, or the error that the GPU driver reports; then the source is
  /// unchanged.
  bool take(StagingSource& source, Deadline deadline);

  [[nodiscard]] std::uint64_t bytes() const noexcept;
  /// How many times there was not enough memory.
  [[nodiscard]] std::uint64_t refused() const noexcept { return refused_; }

 private:
  class Use;
  struct InUse;
  struct Memory {
    DeviceType type = DeviceType::kCpu;
    std::shared_ptr<std::byte> begin;
    std::uint64_t bytes = 0;
  };
  using Sizes = std::map<std::int16_t, std::pair<DeviceType, std::uint64_t>>;  // by device's index
  void wait_until_free(Deadline deadline);
  void grow(const Sizes& sizes);

  std::uint64_t max_bytes_;
  std::function<void(const std::string&)> warn_;
  std::shared_ptr<InUse> in_use_;
  std::map<std::int16_t, Memory> memory_;  // by device's index
  Sizes refused_sizes_;
  std::uint64_t refused_ = 0;
  DeviceStreams streams_;
};

}  // namespace meshstage::detail
