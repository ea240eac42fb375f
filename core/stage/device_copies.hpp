#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include <meshstage/core/device/batched_copies.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/watermark.hpp>
#include <meshstage/core/tensor/device_memory.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// require_device_memory() for every storage of a state dict.
void require_devices(const FlatState& flat);

/// A run of a device's memory, and where it goes on the host.
struct DevicePlace {
  const Storage* from = nullptr;
  std::span<std::byte> to;
};

/// The streams that copy for one stager or agent, one for each device, made at the first use. One
/// thread at a time.
class DeviceStreams {
 public:
  DeviceStream& of(Device device);

 private:
  std::map<std::int16_t, DeviceStream> streams_;
};

/// What devices copy of one staging into host memory. Everything is issued when this is made, as
/// BatchedCopies has it. Both ends of the copies are used until done() or until wait() returned for
/// all of them. Whatever ends this before that: `keep` holds them until they are. Threads: made by
/// one; then any number wait.
class DeviceCopies {
 public:
  /// `ready` is what the copies come behind. Throws what the driver reports. Where host memory is
  /// not page-locked this returns only when those copies are done. Without `keep` the caller keeps
  /// both ends until done(), and this throws only when what was issued is done.
  DeviceCopies(std::span<const DevicePlace> places, std::span<const DeviceReady> ready,
               DeviceStreams& streams, std::shared_ptr<const void> keep);
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;
  ~DeviceCopies();

  /// Until the first `bytes` of a place are on the host. Throws the cause soon after somebody
  /// failed `progress`, and InvalidState if the device failed.
  void wait(std::size_t place, std::uint64_t bytes, Watermark& progress) const;
  void wait_all(Watermark& progress) const;
  /// Nothing of it touches memory any more.
  [[nodiscard]] bool done() const noexcept;
  /// Behind all copies of a device: what changes their sources comes after. Done where it has none.
  [[nodiscard]] DeviceEvent staged(Device device) const;

 private:
  struct OnDevice {
    Device device;
    std::vector<DeviceCopy> list;
    BatchedCopies copies;
  };
  /// Which device copies a place, and which of its copies that is.
  struct Where {
    std::uint32_t device = 0;
    std::uint32_t copy = 0;
  };

  std::vector<OnDevice> devices_;
  std::vector<Where> where_;  // by place
  std::shared_ptr<const void> keep_;
};

}  // namespace meshstage::detail
