// How long the tasks of a thread keep it from the next one, whatever else the machine does.
#pragma once
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>

namespace meshstage::test {

/// A replicate::TaskObserver of one rank. A task is slow if it computes for longer than 10 ms, or
/// waits for longer than that: for a lock, a disk, another thread. The time in which the thread
/// could run but got no processor counts for neither, so a loaded machine makes no task slow.
/// Threads: the calls from one; the figures from any.
class TaskClock {
 public:
  static constexpr std::chrono::milliseconds kSlow{10};

  TaskClock() = default;
  TaskClock(const TaskClock&) = delete;
  TaskClock& operator=(const TaskClock&) = delete;
  ~TaskClock() {
    if (file_ >= 0) ::close(file_);
  }

  void operator()(bool begins) {
    const Times now = read();
    if (begins) {
      begun_ = now;
      return;
    }
    ++tasks_;
    const auto computed = now.processor - begun_.processor;
    // A thread that was only put off (by a quota, say) has not given up its processor by itself.
    const bool waited = now.waits != begun_.waits;
    const auto lasted = (now.clock - begun_.clock) - (now.ready - begun_.ready);
    if (computed > kSlow || (waited && lasted > kSlow)) ++slow_;
  }
  [[nodiscard]] int tasks() const { return tasks_; }
  [[nodiscard]] int slow() const { return slow_; }
  [[nodiscard]] static std::chrono::nanoseconds of_clock(clockid_t which) {
    timespec now{};
    (void)::clock_gettime(which, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  }

 private:
  struct Times {
    std::chrono::nanoseconds clock{};      ///< Passed.
    std::chrono::nanoseconds processor{};  ///< Of these, this thread ran.
    std::chrono::nanoseconds ready{};      ///< Of these, this thread could have run.
    long waits = 0;                        ///< How often it has waited for something.
  };
  Times read() {
    if (file_ < 0) file_ = ::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    Times times;
    char text[128] = "";
    unsigned long long ran = 0, ready = 0;
    if (::pread(file_, text, sizeof text - 1, 0) > 0) {
      (void)std::sscanf(text, "%llu %llu", &ran, &ready);
    }
    times.ready = std::chrono::nanoseconds(ready);
    rusage used{};
    (void)::getrusage(RUSAGE_THREAD, &used);
    times.waits = used.ru_nvcsw;
    times.processor = of_clock(CLOCK_THREAD_CPUTIME_ID);
    times.clock = of_clock(CLOCK_MONOTONIC);
    return times;
  }

  int file_ = -1;
  Times begun_;
  std::atomic<int> tasks_{0}, slow_{0};
};

}  // namespace meshstage::test
