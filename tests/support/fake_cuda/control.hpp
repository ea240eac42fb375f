#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

/// How a test steers the fake libcuda.so.1. The fake is a driver for devices that are not there: as
/// strict as the real one where that is documented, and stricter where the real one only happens to
/// forgive. What is issued happens as late as streams and events allow, in an order that they and a
/// seed decide.
namespace meshstage::fake_cuda {

struct Control {
  /// Forgets failures, violations and counts, and begins a new order of events.
  void (*reset)(std::uint64_t seed);
  /// While held nothing that was issued happens: queries say "not ready", waits wait.
  void (*hold)(bool held);
  /// What has happened to issued operations: all that were issued and have not happened yet.
  std::size_t (*pending)();
  /// The `n`-th call from now on (1: the next) fails with a CUresult; 0: none. Looking up texts of
  /// errors does not count.
  void (*fail_call)(std::uint64_t n, int result);
  /// The `n`-th call of a function from now on fails: "cuMemHostRegister".
  void (*fail_function)(const char* name, std::uint64_t n, int result);
  /// Calls since reset(), of all functions or (by name) of one.
  std::uint64_t (*calls)(const char* name);
  /// The `n`-th run that is copied from a device to the host from now on does not arrive, or with
  /// one bit wrong; 0: none.
  void (*damage_copy)(std::uint64_t n, bool drop);
  /// What cuInit and cuDriverGetVersion say, and how many devices there are (at most 2).
  void (*set_driver)(int init_result, int version, int devices);
  /// Rules that were broken since reset(): a text, one line each. Empty if none.
  const char* (*violations)();
  /// Bytes of device memory that are allocated, and host memory that is registered.
  std::size_t (*device_bytes)();
  std::size_t (*registered_bytes)();
  std::size_t (*streams)();
};

/// What a fake library that puts work on streams needs (the fake libnccl.so.2).
struct Streams {
  /// The fake's one lock.
  void (*lock)(bool locked);
  // The rest with the lock held.
  /// Issues work that happens when its turn has come and `gate` says so. False for no stream of the
  /// current device.
  bool (*issue)(void* stream, std::function<bool()> gate, std::function<void()> happens);
  /// How the host reaches a run of live device memory; null if it is none.
  std::byte* (*reach)(const void* address, std::size_t bytes);
  int (*current_device)();
  void (*violate)(const std::string& text);
};
using GetStreams = const Streams* (*)();
inline constexpr char kStreamsSymbol[] = "meshstage_fake_cuda_streams";

using GetControl = const Control* (*)();
inline constexpr char kControlSymbol[] = "meshstage_fake_cuda_control";

}  // namespace meshstage::fake_cuda
