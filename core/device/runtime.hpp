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

/// A stream of the trainer, by the number that CUDA, DLPack and array libraries give it: a
/// cudaStream_t's value. 0 and 1 are the legacy default stream, 2 is the calling thread's own
/// default stream.
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

/// The reason why devices of a kind cannot be used.
enum class DeviceProblem : std::uint8_t {
  kNone,
  kNoModule,      ///< This build has no backend for them, or the backend was not found.
  kNoDriver,      ///< The driver's library is not installed.
  kDriverTooOld,  ///< The driver lacks functions that the backend needs.
  kNoDevice,      ///< The driver sees no device (also where CUDA_VISIBLE_DEVICES hides all).
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

/// The devices of a kind, and whether they can be used. device_support() makes no context and opens
/// no device.
struct DeviceSupport {
  DeviceProblem problem = DeviceProblem::kNone;
  std::string detail;   ///< The problem, and what helps; empty if there is none.
  std::string module;   ///< The backend and what it was built with.
  std::string driver;   ///< "CUDA 13.0".
  std::string kernels;  ///< Why there are no kernels; empty if there are.
  std::vector<DeviceInfo> devices;
};
/// Never throws an Error: the returned value has the problem. Threads: any.
[[nodiscard]] MESHSTAGE_API DeviceSupport device_support(DeviceType type);

enum class CopyDirection : std::uint8_t { kToHost, kToDevice, kWithinDevice };

/// One run of bytes to copy, for example from the stream's device to host memory.
struct DeviceCopy {
  void* target = nullptr;
  const void* source = nullptr;
  std::uint64_t bytes = 0;
};

/// A run of bytes of a block that a device digests; see DeviceStream::digest().
struct DeviceRun {
  std::uint64_t offset = 0;      ///< In the block, bytes; a multiple of kDigestAlignment.
  const void* source = nullptr;  ///< On the stream's device; a multiple of kDigestAlignment.
  std::uint64_t bytes = 0;       ///< At least 1.
};
inline constexpr std::uint64_t kDigestAlignment = 16;

/// A block that a device digests. Bytes outside its runs count as zeros.
struct DeviceBlock {
  std::uint64_t bytes = 0;  ///< At least kLeastDigestedBytes.
  std::uint64_t runs = 0;   ///< Ascending, without overlap.
};
inline constexpr std::uint64_t kLeastDigestedBytes = 241;

/// XXH3-128 of a block; `low` is its XXH3-64.
struct DeviceDigest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  friend bool operator==(const DeviceDigest&, const DeviceDigest&) = default;
};

/// A point in a stream's work. It is a handle; a default-constructed event is always done. Threads:
/// any. Waiting is polling, because the driver's own waits cannot be given up.
class MESHSTAGE_API DeviceEvent {
 public:
  DeviceEvent() = default;
  /// True if everything before the point is done; the calling thread then sees the results. Throws
  /// InvalidState if the device failed.
  [[nodiscard]] bool done() const;
  /// True if done(), or if the device failed: work before the point touches no memory any more.
  [[nodiscard]] bool over() const noexcept;
  /// Waits until done(). Throws Timeout at the deadline. Calls `check`, if there is one, again and
  /// again; an exception of `check` ends the wait.
  void wait(Deadline deadline = Deadline::never(), const std::function<void()>& check = {}) const;

  struct Impl;

 private:
  friend class DeviceRuntime;
  friend class DeviceStream;
  explicit DeviceEvent(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

/// The digests that a device makes. A handle; the digests stay while one is left. Threads: any.
struct DeviceDigests {
  DeviceEvent made;                           ///< Only behind it are the digests there.
  std::shared_ptr<const DeviceDigest[]> all;  ///< By block; null if there are no blocks.
};

/// An event behind the work that a trainer had issued on a device at some moment.
struct DeviceReady {
  Device device;
  DeviceEvent event;
};

/// A stream of the library: its work happens in the order in which it was issued, and waits for no
/// other stream's work unless wait() says so. Move-only. Work that was issued goes on after
/// destruction. Threads: one at a time.
class MESHSTAGE_API DeviceStream {
 public:
  DeviceStream();
  DeviceStream(DeviceStream&&) noexcept;
  DeviceStream& operator=(DeviceStream&&) noexcept;
  ~DeviceStream();

  [[nodiscard]] bool valid() const noexcept { return impl_ != nullptr; }
  [[nodiscard]] Device device() const noexcept;
  /// Work that is issued on this stream from now on happens after `event`. The device waits, not
  /// the calling thread.
  void wait(const DeviceEvent& event);
  /// An event behind everything that was issued on this stream so far.
  [[nodiscard]] DeviceEvent record();
  /// Issues copies without an order among them. Both ends must stay until an event behind the
  /// copies is done. If a host end is not page-locked by DeviceRuntime::pinner(), the call blocks
  /// until that copy is done. Throws the error that the driver reports; copies that were issued
  /// before may still happen.
  void copy(CopyDirection direction, std::span<const DeviceCopy> copies);
  /// Does what copy() does, but with one kernel, which is faster for thousands of small copies.
  /// Calls copy() if the device has no kernels or if a host end is not page-locked.
  void gather(CopyDirection direction, std::span<const DeviceCopy> copies);
  /// Issues one kernel that digests blocks of the device's memory. `runs`: those of the first
  /// block, then those of the second, and so on. The sources must stay until `made` is done; lists
  /// and results are the stream's, and are used again when they are read. Throws InvalidState
  /// unless DeviceRuntime::can_digest(), InvalidArgument for blocks and runs that are not as their
  /// structs say, and the error that the driver reports; the kernel may still happen then.
  [[nodiscard]] DeviceDigests digest(std::span<const DeviceBlock> blocks,
                                     std::span<const DeviceRun> runs);

  struct Impl;

 private:
  friend class DeviceRuntime;
  explicit DeviceStream(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The devices of one kind in this process; one object for each kind, which lives as long as the
/// process. The runtime keeps the contexts, kernels and events that it makes. A forked child must
/// not use its parent's runtime: every call throws InvalidState there, and destructors in the child
/// leave the driver's objects alone.
/// Errors: OutOfMemory where the device or the host has no memory, InvalidArgument for an index
/// that no device has, else InvalidState with the error that the driver reports.
/// Threads: any.
class MESHSTAGE_API DeviceRuntime {
 public:
  /// Opens the backend at the first call (kCuda: the module libmeshstage_cuda.so and the driver).
  /// Throws NotFound or InvalidState, with the detail that device_support() gives.
  [[nodiscard]] static DeviceRuntime& of(DeviceType type);

  DeviceRuntime(const DeviceRuntime&) = delete;
  DeviceRuntime& operator=(const DeviceRuntime&) = delete;

  [[nodiscard]] DeviceType type() const noexcept;
  /// Asks the driver whether the `bytes` bytes at `address` are plain memory of the device.
  /// Otherwise throws InvalidArgument, which says what kind of memory they are; the caller adds the
  /// path.
  void require_memory(Device device, const void* address, std::uint64_t bytes);
  /// True if DeviceStream::gather() runs a kernel on `device`.
  [[nodiscard]] bool has_kernels(Device device);
  /// True if DeviceStream::digest() works on `device`.
  [[nodiscard]] bool can_digest(Device device);

  /// Memory of a device, contents unspecified; freed with the last handle. 0 bytes: null.
  [[nodiscard]] std::shared_ptr<std::byte> allocate(Device device, std::uint64_t bytes);
  [[nodiscard]] DeviceStream open_stream(Device device);

  /// Throws InvalidState if `stream` is being captured into a graph: then nothing may be issued on
  /// it.
  void require_not_capturing(const TrainerStream& stream);
  /// An event behind everything that was issued so far on the trainer's `stream`.
  [[nodiscard]] DeviceEvent record(const TrainerStream& stream);
  /// Work that is issued on the trainer's `stream` from now on happens after `event`. The device
  /// waits, not the calling thread.
  void hold(const TrainerStream& stream, const DeviceEvent& event);

  /// Page-locks host memory for all devices of the kind. The pinner first populates the pages, then
  /// locks them in pieces of at most kPinnedPieceBytes. Locking stalls the driver for all other
  /// threads and processes, so between two pieces the pinner rests for as long as the first of them
  /// took. pin() locks all pages or none, and never changes what the memory holds. `device` is any
  /// device that the process uses anyway.
  [[nodiscard]] MemoryPinner& pinner(Device device);
  /// True if all of the bytes are page-locked by a pinner() of this runtime.
  [[nodiscard]] bool is_pinned(std::span<const std::byte> bytes) const;

  /// Keeps `what` until the event is done (or its device failed): for memory that a device still
  /// uses when the memory's user goes away. Every later call of keep() and open_stream() looks at
  /// the events and lets go. If there is no memory to remember `what`, the call waits for the
  /// event.
  void keep(DeviceEvent event, std::shared_ptr<const void> what) noexcept;
  /// Keeps `what` for ever: for memory whose last use by a device has no event, because recording
  /// one failed. It is leaked on purpose, but stays reachable (unless there is no memory for that).
  void keep_for_good(std::shared_ptr<const void> what) noexcept;
  /// The number of objects that keep() still holds, after looking at their events.
  [[nodiscard]] std::size_t kept();

  struct Impl;

 private:
  explicit DeviceRuntime(std::unique_ptr<Impl> impl);
  ~DeviceRuntime();
  std::unique_ptr<Impl> impl_;
};

inline constexpr std::uint64_t kPinnedPieceBytes = std::uint64_t{32} << 20U;

}  // namespace meshstage
