#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/device/device.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/memory/pinning.hpp>

namespace meshstage {

/// A stream that belongs to somebody else (the trainer), by the number that CUDA, DLPack and array
/// libraries give it: a cudaStream_t's value; 1 is the legacy default stream, 2 the calling
/// thread's own default stream, 0 the legacy one, too.
struct StreamHandle {
  std::uint64_t value = 1;
  friend bool operator==(StreamHandle, StreamHandle) = default;
};
inline constexpr StreamHandle kLegacyStream{1};
inline constexpr StreamHandle kPerThreadStream{2};

/// The stream on which a trainer uses its tensors of a device.
struct TrainerStream {
  Device device;
  StreamHandle stream = kLegacyStream;
};

/// Why devices of a kind cannot be used.
enum class DeviceProblem : std::uint8_t {
  kNone,
  kNoModule,      ///< This build has no backend for them, or it was not found.
  kNoDriver,      ///< The driver's library is not installed.
  kDriverTooOld,  ///< It lacks what the backend needs.
  kNoDevice,      ///< The driver sees none (also where CUDA_VISIBLE_DEVICES hides them).
  kNoPermission,  ///< The process may not open the device files.
  kNotReady,      ///< The system is still starting, or needs a restart after an update.
  kFailed,        ///< Anything else that the driver reports.
};
MESHSTAGE_API std::string_view to_string(DeviceProblem problem) noexcept;

struct DeviceInfo {
  Device device;
  std::string name;                ///< "NVIDIA H200".
  std::uint64_t memory_bytes = 0;  ///< In all.
  std::string architecture;        ///< "9.0".
};

/// What there is of a kind of device. Looking makes no context and opens no device.
struct DeviceSupport {
  DeviceProblem problem = DeviceProblem::kNone;
  std::string detail;   ///< The problem, and what helps; empty if there is none.
  std::string module;   ///< The backend and what it was built with.
  std::string driver;   ///< "CUDA 13.0".
  std::string kernels;  ///< Why there are no kernels; empty if there are.
  std::vector<DeviceInfo> devices;
};
/// Never throws an Error: whatever is wrong is what it returns. Threads: any.
[[nodiscard]] MESHSTAGE_API DeviceSupport device_support(DeviceType type);

enum class CopyDirection : std::uint8_t { kToHost, kToDevice, kWithinDevice };

/// One run of bytes, from the stream's device to host memory, say.
struct DeviceCopy {
  void* target = nullptr;
  const void* source = nullptr;
  std::uint64_t bytes = 0;
};

/// A point in a stream's work. A handle; a default-constructed one is always done.
/// Threads: any; waiting is polling, since no other way to wait can be given up.
class MESHSTAGE_API DeviceEvent {
 public:
  DeviceEvent() = default;
  /// Everything before the point is done, and visible to the calling thread. Throws InvalidState
  /// if the device failed.
  [[nodiscard]] bool done() const;
  /// done(), or the device failed: nothing before the point touches memory any more.
  [[nodiscard]] bool over() const noexcept;
  /// Until done(). Throws Timeout at the deadline; `check`, if any, is called again and again and
  /// ends the wait by throwing.
  void wait(Deadline deadline = Deadline::never(), const std::function<void()>& check = {}) const;

  struct Impl;

 private:
  friend class DeviceRuntime;
  friend class DeviceStream;
  explicit DeviceEvent(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

/// Behind what a trainer had issued on a device at some moment.
struct DeviceReady {
  Device device;
  DeviceEvent event;
};

/// A stream of our own: what is issued on it happens in this order, behind nothing else. Move-only;
/// destruction lets go on what was issued. Threads: one at a time.
class MESHSTAGE_API DeviceStream {
 public:
  DeviceStream();
  DeviceStream(DeviceStream&&) noexcept;
  DeviceStream& operator=(DeviceStream&&) noexcept;
  ~DeviceStream();

  [[nodiscard]] bool valid() const noexcept { return impl_ != nullptr; }
  [[nodiscard]] Device device() const noexcept;
  /// What is issued from now on happens after the event. Waits on the device, not here.
  void wait(const DeviceEvent& event);
  /// Behind everything that was issued so far.
  [[nodiscard]] DeviceEvent record();
  /// Issues copies without an order among them. Both ends must stay until an event behind the
  /// copies is done. Where a host end is not page-locked by DeviceRuntime::pinner(), the call
  /// blocks until that copy is done. Throws what the driver reports; what was issued before that
  /// may still happen.
  void copy(CopyDirection direction, std::span<const DeviceCopy> copies);
  /// The same by one kernel, which is worth it for thousands of small copies; as copy() where the
  /// device has no kernels, or a host end is not page-locked.
  void gather(CopyDirection direction, std::span<const DeviceCopy> copies);

  struct Impl;

 private:
  friend class DeviceRuntime;
  explicit DeviceStream(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The devices of one kind in this process; one object for each kind, which lives as long as the
/// process. Contexts, kernels and events that it makes are kept. A child that forks from a process
/// with a runtime must not use it: every call throws InvalidState there, and what the child
/// destroys is left alone.
/// Errors: OutOfMemory where the device or the host has no memory, else InvalidState with what the
/// driver reports; an index that no device has is InvalidArgument.
/// Threads: any.
class MESHSTAGE_API DeviceRuntime {
 public:
  /// Opens the backend at the first call (kCuda: the module libmeshstage_cuda.so and the driver).
  /// Throws NotFound or InvalidState, with what device_support() says.
  [[nodiscard]] static DeviceRuntime& of(DeviceType type);

  DeviceRuntime(const DeviceRuntime&) = delete;
  DeviceRuntime& operator=(const DeviceRuntime&) = delete;

  [[nodiscard]] DeviceType type() const noexcept;
  /// Asks the driver whether `bytes` from `address` are plain memory of the device. Throws
  /// InvalidArgument that says what they are instead; the caller adds the path.
  void require_memory(Device device, const void* address, std::uint64_t bytes);
  /// Whether gather() runs a kernel there.
  [[nodiscard]] bool has_kernels(Device device);

  /// Memory of a device, contents unspecified; given back with the last handle. 0 bytes: null.
  [[nodiscard]] std::shared_ptr<std::byte> allocate(Device device, std::uint64_t bytes);
  [[nodiscard]] DeviceStream open_stream(Device device);

  /// Throws InvalidState if the stream is being captured into a graph: nothing may be issued then.
  void require_not_capturing(const TrainerStream& stream);
  /// Behind everything that was issued so far on somebody else's stream.
  [[nodiscard]] DeviceEvent record(const TrainerStream& stream);
  /// What is issued from now on on somebody else's stream happens after the event. Waits on the
  /// device, not here.
  void hold(const TrainerStream& stream, const DeviceEvent& event);

  /// Page-locks host memory for all devices of the kind, in pieces of at most kPinnedPieceBytes:
  /// locking stalls the driver for other processes, so it lets them in between. Populates first.
  /// pin() is all or nothing, and never touches what the memory holds. `device` is any that the
  /// process uses anyway.
  [[nodiscard]] MemoryPinner& pinner(Device device);
  /// All of it is page-locked by a pinner() of this runtime.
  [[nodiscard]] bool is_pinned(std::span<const std::byte> bytes) const;

  /// Keeps `what` until the event is done (or its device failed): for memory that a device still
  /// uses when its user goes away. Looked at in every later call of keep() and open_stream().
  void keep(DeviceEvent event, std::shared_ptr<const void> what);
  /// For memory of which nobody can tell when a device is done with it, because recording an event
  /// failed: what is leaked on purpose stays reachable.
  void keep_for_good(std::shared_ptr<const void> what);
  /// Things that keep() still holds; looks first.
  [[nodiscard]] std::size_t kept();

  struct Impl;

 private:
  explicit DeviceRuntime(std::unique_ptr<Impl> impl);
  ~DeviceRuntime();
  std::unique_ptr<Impl> impl_;
};

inline constexpr std::uint64_t kPinnedPieceBytes = std::uint64_t{256} << 20U;

}  // namespace meshstage
