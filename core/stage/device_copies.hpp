#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/device/batched_copies.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/stage/digested_blocks.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/watermark.hpp>
#include <meshstage/core/tensor/device_memory.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// require_device_memory() for every storage of a state dict.
void require_devices(const FlatState& flat);

/// A run of a device's memory, and its target on the host or on the same device.
struct DevicePlace {
  const Storage* from = nullptr;
  std::span<std::byte> to;
};

/// The streams that work for one stager or agent: one for each device that copies, and one that
/// digests beside it, each made at its first use. Threads: one at a time.
class DeviceStreams {
 public:
  DeviceStream& of(Device device) { return open(copying_, device); }
  DeviceStream& digesting(Device device) { return open(digesting_, device); }
  /// The streams of `device` that were made so far.
  [[nodiscard]] std::vector<DeviceStream*> made(Device device);

 private:
  using ByIndex = std::map<std::int16_t, DeviceStream>;
  static DeviceStream& open(ByIndex& streams, Device device);
  ByIndex copying_, digesting_;
};

/// The copies of one staging from devices into host memory, or within the devices, and the digests
/// of blocks that devices make of the sources beside them. The constructor issues all of them (see
/// BatchedCopies). Devices use both ends of the copies until done(), or until wait() has returned
/// for all places and digest() for one block of each device. If this object is destroyed before,
/// the runtime holds `keep` until both are done. Threads: one constructs it; then any number wait.
class DeviceCopies {
 public:
  /// Copies and digests come behind the events in `ready`. If host memory is not page-locked, the
  /// constructor returns only when the copies into it are done. Throws the error that the driver
  /// reports. Without `keep` the caller keeps both ends until done(), and the constructor throws
  /// only when all work that it issued is done.
  DeviceCopies(std::span<const DevicePlace> places, std::span<const DeviceReady> ready,
               DeviceStreams& streams, std::shared_ptr<const void> keep,
               CopyDirection direction = CopyDirection::kToHost,
               std::shared_ptr<const DigestedBlocks> blocks = nullptr);
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;
  ~DeviceCopies();

  /// Waits until the first `bytes` of a place are on the host. Throws the cause of `progress` soon
  /// after `progress` was failed, and InvalidState if the device failed.
  void wait(std::size_t place, std::uint64_t bytes, Watermark& progress) const;
  void wait_all(Watermark& progress) const;
  /// True if a device digests this block of the image.
  [[nodiscard]] bool digests(std::size_t block) const noexcept;
  /// Waits for a digest that a device makes. Throws what wait() throws.
  [[nodiscard]] DeviceDigest digest(std::size_t block, Watermark& progress) const;
  /// True if no issued copy or digest uses memory any more.
  [[nodiscard]] bool done() const noexcept;
  /// An event behind all copies and digests of `device`: work that changes their sources must come
  /// behind it. The event is done already if the device copies nothing.
  [[nodiscard]] DeviceEvent staged(Device device) const;

 private:
  struct OnDevice {
    Device device;
    std::vector<DeviceCopy> list;
    BatchedCopies copies;
    DeviceDigests digests;
    DeviceEvent last;  // behind both
    [[nodiscard]] bool over() const noexcept { return copies.last().over() && digests.made.over(); }
  };
  /// Which device copies a place, and which of its copies that is.
  struct Where {
    std::uint32_t device = 0;
    std::uint32_t copy = 0;
  };

  void issue(OnDevice& on, std::span<const DeviceReady> ready, DeviceStreams& streams,
             CopyDirection direction);
  /// Null if `device` copies and digests nothing.
  [[nodiscard]] const OnDevice* find(Device device) const noexcept;
  OnDevice& on_device(Device device);

  std::vector<OnDevice> devices_;
  std::vector<Where> where_;                            // by place
  const std::shared_ptr<const DigestedBlocks> blocks_;  // null: devices digest nothing
  std::shared_ptr<const void> keep_;
};

}  // namespace meshstage::detail
