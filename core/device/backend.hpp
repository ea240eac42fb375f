#pragma once
#include <cstddef>
#include <cstdint>

/// The interface to a kind of device: one table of functions on plain data. The module
/// libmeshstage_cuda.so has such a table, and so has cpu/. No exception, no C++ type and no memory
/// changes owner; handles are made and closed by the backend. A change of anything here raises
/// kBackendAbi.
/// Threads: any thread may call any function, but one at a time for one stream or event. A backend
/// changes no thread's state: it puts contexts and capture modes back.
namespace meshstage::device_backend {

inline constexpr std::uint32_t kBackendAbi = 2;
inline constexpr char kTableSymbol[] = "meshstage_device_backend_table";

/// The result of a call. On kFailed the failure was written.
enum Result : int { kDone = 0, kNotReady = 1, kFailed = 2 };

/// Why a call failed: an ErrorKind as a number, and a text that a zero byte ends.
struct Failure {
  std::int32_t kind;
  char text[512];
};

/// The driver and its devices, found without a context on any device.
struct Probe {
  std::int32_t problem;  ///< A DeviceProblem as a number.
  std::int32_t devices;
  char driver[64];    ///< "CUDA 13.0"; empty if there is no driver.
  char detail[512];   ///< What the problem is and what helps; empty if there is none.
  char kernels[128];  ///< "" if kernels are built in, else why there are none.
};

struct Description {
  char name[128];
  std::uint64_t memory_bytes;
  std::int32_t major, minor;  ///< Of the architecture.
};

/// The kind of memory an address points to, as the driver knows it.
enum class Pointee : std::int32_t { kUnknown = 0, kPinned = 1, kDevice = 2, kManaged = 3 };
struct Location {
  Pointee pointee;
  std::int32_t device;  ///< Index; -1 where it means nothing.
};

/// One copy, in the host's addresses: of a device's memory or of the host's.
struct Copy {
  void* target;
  const void* source;
  std::uint64_t bytes;
};

/// One copy, in the device's addresses. It is a kernel's argument, so its layout is part of the
/// interface.
struct GatherItem {
  std::uint64_t target;
  std::uint64_t source;
  std::uint64_t bytes;  ///< At most kGatherItemBytes.
};
inline constexpr std::uint64_t kGatherItemBytes = std::uint64_t{256} << 10U;

/// A run of a block to digest, in the device's addresses. Like GatherItem, a part of a kernel's
/// argument.
struct DigestRun {
  std::uint64_t offset;  ///< In its block; a multiple of kDigestAlignment.
  std::uint64_t source;  ///< A multiple of kDigestAlignment.
  std::uint64_t bytes;   ///< At least 1.
};
/// A block to digest: its runs ascend and do not overlap; bytes outside the runs count as zeros.
struct DigestBlock {
  std::uint64_t bytes;      ///< At least 241 (xxh3.hpp).
  std::uint64_t first_run;  ///< Among the runs of all blocks.
  std::uint64_t runs;
};
/// XXH3-128 of a block.
struct DigestResult {
  std::uint64_t low;
  std::uint64_t high;
};
inline constexpr std::uint64_t kDigestAlignment = 16;

struct Stream;
struct Event;

struct Table {
  std::uint32_t abi;
  const char* version;  ///< For people: "CUDA 13.0 headers".

  void (*probe)(Probe* probe);
  Result (*describe)(int device, Description* description, Failure* failure);
  /// Makes a device usable: its context, its kernels. Idempotent; every call below needs it.
  Result (*open)(int device, Failure* failure);
  Result (*locate)(int device, const void* address, Location* location, Failure* failure);

  /// Memory of the device, aligned to 256 bytes.
  Result (*allocate)(int device, std::uint64_t bytes, void** memory, Failure* failure);
  void (*release)(int device, void* memory);
  /// Page-locks host memory for every device, and says how kernels address it.
  Result (*pin)(int device, void* begin, std::uint64_t bytes, std::uint64_t* address,
                Failure* failure);
  Result (*unpin)(int device, void* begin, Failure* failure);

  /// Opens a stream that waits for no other stream (not even the legacy one).
  Result (*open_stream)(int device, Stream** stream, Failure* failure);
  /// Work that was issued on the stream goes on.
  void (*close_stream)(Stream* stream);
  Result (*open_event)(int device, Event** event, Failure* failure);
  void (*close_event)(Event* event);

  /// `foreign` is a stream of the trainer, as the number in StreamHandle.
  Result (*is_capturing)(int device, std::uint64_t foreign, bool* capturing, Failure* failure);
  Result (*record_foreign)(Event* event, std::uint64_t foreign, Failure* failure);
  Result (*wait_foreign)(int device, std::uint64_t foreign, Event* event, Failure* failure);

  Result (*record)(Event* event, Stream* stream, Failure* failure);
  Result (*wait)(Stream* stream, Event* event, Failure* failure);
  /// kDone if the work that the event recorded last is done, or if it never recorded any.
  Result (*query)(Event* event, Failure* failure);

  /// Issues copies without an order among them. `pageable`: some of the host memory is not
  /// page-locked; then the call may block until the copies are done. Sources are read in stream
  /// order.
  Result (*copy)(Stream* stream, const Copy* copies, std::size_t count, bool pageable,
                 Failure* failure);
  /// Whether gather() works on this device.
  bool (*can_gather)(int device);
  /// Issues one kernel that makes all copies; `items` is a device's address and stays as it is
  /// until the kernel is done.
  Result (*gather)(Stream* stream, std::uint64_t items, std::uint32_t count, Failure* failure);
  /// Whether digest() works on this device.
  bool (*can_digest)(int device);
  /// Issues one kernel that digests `count` blocks. `blocks`, `runs` and `results` are a device's
  /// addresses of arrays of DigestBlock, DigestRun and DigestResult; blocks and runs stay as they
  /// are until the kernel is done.
  Result (*digest)(Stream* stream, std::uint64_t blocks, std::uint64_t runs, std::uint64_t results,
                   std::uint32_t count, Failure* failure);
};

using GetTable = const Table* (*)();

}  // namespace meshstage::device_backend
