#pragma once
#include <cstdint>

/// How a test steers the fake libnccl.so.2. Its ranks are threads or processes that meet in a
/// folder; its operations happen on streams of the fake libcuda.so.1, as late as those allow. The
/// fake is as strict as NCCL where that is documented, and notes each broken rule as a violation of
/// the fake driver's:
/// - a call for a communicator by another thread than the one that made it;
/// - an operation, or an end, before the asynchronous state is success;
/// - a call after abort, and memory that is no live memory of the device.
/// An operation is on its stream only when the state has become success, so an event that is
/// recorded sooner is in front of it. Operations of one rank happen in the order in which they were
/// issued, over all of its communicators: so two communicators used in differing order wait for
/// each other until one is aborted. What was aborted does not happen, and its stream reports
/// success.
namespace meshstage::fake_nccl {

struct Control {
  /// Forgets counts and failures.
  void (*reset)();
  /// The `n`-th call from now on (1: the next) fails with an ncclResult_t; 0: none. Texts of errors
  /// do not count.
  void (*fail_call)(std::uint64_t n, int result);
  /// While held no operation happens, though the rest of the device goes on.
  void (*hold)(bool held);
  /// Operations that are on streams and have neither happened nor been aborted.
  std::uint64_t (*issued)();
  /// Calls since reset().
  std::uint64_t (*calls)();
  /// Communicators of this process that were neither destroyed nor aborted.
  std::uint64_t (*communicators)();
};

using GetControl = const Control* (*)();
inline constexpr char kControlSymbol[] = "meshstage_fake_nccl_control";

}  // namespace meshstage::fake_nccl
