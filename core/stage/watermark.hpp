#pragma once
#include <atomic>
#include <cstdint>
#include <exception>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// How many bytes of an image, from its begin, are final. The copying thread advances the mark and
/// others wait for it, so that the front can be sent or digested while the rest is still being
/// copied.
/// Threads: one advances, any number wait. The Watermark must outlive them all.
class MESHSTAGE_API Watermark {
 public:
  Watermark() = default;
  Watermark(const Watermark&) = delete;
  Watermark& operator=(const Watermark&) = delete;

  /// Never goes back: a smaller value is ignored. A thread that sees the new value also sees every
  /// store made before the call.
  void advance(std::uint64_t bytes) noexcept;
  [[nodiscard]] std::uint64_t bytes() const noexcept {
    return bytes_.load(std::memory_order_acquire);
  }
  /// Waits until at least `bytes` are final and returns how many are. Throws Timeout, or the cause
  /// if fail() was called first.
  std::uint64_t wait(std::uint64_t bytes, Deadline deadline = Deadline::never());
  /// Ends every wait for more bytes with `cause`, and tells the copying thread to stop. The first
  /// cause stays.
  void fail(std::exception_ptr cause) noexcept;
  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }
  /// Waits until fail() is called (true), at most until `deadline` (false).
  bool wait_failed(Deadline deadline);
  /// Throws the cause if fail() was called.
  void throw_if_failed();
  /// Begins anew, for the next image; no thread may be waiting.
  void reset() noexcept;

 private:
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<bool> failed_{false};
  Mutex mutex_;  // held by a thread that changes the atomics, so that no wait misses it
  CondVar changed_;
  std::exception_ptr cause_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage
