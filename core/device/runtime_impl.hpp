#pragma once
#include <unistd.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/device/backend.hpp>
#include <meshstage/core/device/pinned_ranges_impl.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {
namespace detail {

[[noreturn]] inline void throw_failure(const device_backend::Failure& failure, Device device) {
  throw_error(static_cast<ErrorKind>(failure.kind), to_string(device) + ": " + failure.text);
}

/// Calls a function of the table that may fail, with the failure as its last argument.
template <class F, class... A>
device_backend::Result call(Device device, F function, A... arguments) {
  device_backend::Failure failure{};
  const auto result = function(arguments..., &failure);
  if (result == device_backend::kFailed) throw_failure(failure, device);
  return result;
}

/// The process that opened a runtime; a forked child is another process.
struct DeviceOwner {
  pid_t pid = ::getpid();
  [[nodiscard]] bool here() const noexcept { return ::getpid() == pid; }
  void require(Device device) const {
    if (here()) return;
    throw InvalidState(to_string(device) +
                       " was opened before this process was forked; use devices in the parent, or "
                       "exec a program that opens them itself");
  }
};

/// Events of one device for reuse, because making an event may wait for the device. Threads: any.
class EventPool {
 public:
  EventPool(const device_backend::Table& table, Device device, DeviceOwner owner)
      : table_(table), device_(device), owner_(owner) {}
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
  ~EventPool() {
    if (!owner_.here()) return;
    for (auto* event : free_) table_.close_event(event);
  }
  device_backend::Event* take() {
    {
      const MutexLock lock(mutex_);
      if (!free_.empty()) {
        auto* const event = free_.back();
        free_.pop_back();
        return event;
      }
      free_.reserve(++made_);  // so that give_back() does not allocate
    }
    device_backend::Event* event = nullptr;
    call(device_, table_.open_event, static_cast<int>(device_.index), &event);
    return event;
  }
  void give_back(device_backend::Event* event) noexcept {
    if (!owner_.here()) return;  // another thread may have held the lock when this was forked
    const MutexLock lock(mutex_);
    free_.push_back(event);
  }
  [[nodiscard]] const device_backend::Table& table() const noexcept { return table_; }
  [[nodiscard]] Device device() const noexcept { return device_; }
  [[nodiscard]] const DeviceOwner& owner() const noexcept { return owner_; }

 private:
  const device_backend::Table& table_;
  Device device_;
  DeviceOwner owner_;
  Mutex mutex_;
  std::vector<device_backend::Event*> free_ MESHSTAGE_GUARDED_BY(mutex_);
  std::size_t made_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
};

/// Page-locks for one device's context; see DeviceRuntime::pinner().
class DevicePinner final : public MemoryPinner {
 public:
  DevicePinner(const device_backend::Table& table, Device device, DeviceOwner owner,
               PinnedRanges& ranges)
      : table_(table), device_(device), owner_(owner), ranges_(ranges) {}
  void pin(std::span<std::byte> pages) override;
  void unpin(std::span<std::byte> pages) noexcept override;

 private:
  const device_backend::Table& table_;
  Device device_;
  DeviceOwner owner_;
  PinnedRanges& ranges_;
};

/// The parts that the streams of one device have in common. Never destroyed, like the runtime.
struct OpenDevice {
  OpenDevice(const device_backend::Table& the_table, Device the_device, DeviceOwner the_owner,
             PinnedRanges& the_ranges)
      : table(the_table),
        device(the_device),
        owner(the_owner),
        ranges(the_ranges),
        events(the_table, the_device, the_owner),
        pinner(the_table, the_device, the_owner, the_ranges) {}
  const device_backend::Table& table;
  const Device device;
  const DeviceOwner owner;
  PinnedRanges& ranges;
  EventPool events;
  DevicePinner pinner;
};

/// DeviceRuntime::allocate() on an open device.
std::shared_ptr<std::byte> allocate(OpenDevice& on, std::uint64_t bytes);

}  // namespace detail

struct DeviceEvent::Impl {
  explicit Impl(detail::EventPool& from) : pool(from), event(pool.take()) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { pool.give_back(event); }
  bool query();

  detail::EventPool& pool;
  device_backend::Event* event;
  Mutex mutex;
  bool done MESHSTAGE_GUARDED_BY(mutex) = false;
};

struct DeviceRuntime::Impl {
  Impl(DeviceType the_type, const device_backend::Table& the_table)
      : type(the_type), table(the_table) {}
  [[nodiscard]] detail::OpenDevice& open(Device device);
  /// Lets go of the objects whose events are done; returns how many objects keep() still holds.
  std::size_t look_after_kept();
  void keep(DeviceEvent event, std::shared_ptr<const void> what) noexcept;
  /// See DeviceRuntime::keep_for_good().
  void keep_for_good(std::shared_ptr<const void> what) noexcept;

  const DeviceType type;
  const device_backend::Table& table;
  const detail::DeviceOwner owner{};
  detail::PinnedRanges ranges;
  Mutex mutex;
  std::map<std::int16_t, detail::OpenDevice> devices MESHSTAGE_GUARDED_BY(mutex);
  Mutex kept_mutex;
  std::vector<std::pair<DeviceEvent, std::shared_ptr<const void>>> kept
      MESHSTAGE_GUARDED_BY(kept_mutex);
  std::vector<std::shared_ptr<const void>> kept_for_good MESHSTAGE_GUARDED_BY(kept_mutex);
};

}  // namespace meshstage
