#pragma once
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <ctime>

/// Private to the checkpointer: what tells a trainer that works from one that hangs.
namespace meshstage::detail {

/// A number that changes while the trainer's thread calls or computes. It stays where that thread
/// waits for something that never comes, though the process's other threads go on.
/// Threads: call() is the trainer's, now() anybody's.
class TrainerSigns {
 public:
  TrainerSigns() { call(); }
  void call() noexcept {
    clockid_t clock{};
    if (::pthread_getcpuclockid(::pthread_self(), &clock) == 0) clock_ = clock;
    ++calls_;
  }
  [[nodiscard]] std::uint64_t now() const noexcept {
    constexpr std::int64_t kTicks = 10'000'000;  // nanoseconds: less may be an interrupt's
    timespec time{};
    std::uint64_t ticks = 0;
    if (::clock_gettime(clock_, &time) == 0) {
      ticks = static_cast<std::uint64_t>(
          (time.tv_sec * std::int64_t{1'000'000'000} + time.tv_nsec) / kTicks);
    }
    return calls_ + ticks;
  }

 private:
  std::atomic<clockid_t> clock_{};
  std::atomic<std::uint64_t> calls_ = 0;
};

}  // namespace meshstage::detail
