#pragma once
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include <meshstage/core/async/deadline.hpp>

namespace meshstage {

/// Calls something back when a deadline passes, from one thread that starts with the first armed
/// deadline. The only way to leave a wait of Gloo's early without ruining its context.
/// Threads: any; callbacks run one at a time and must not call back into the timer.
class DeadlineTimer {
 public:
  using Token = std::uint64_t;
  static constexpr Token kNone = 0;

  DeadlineTimer() = default;
  DeadlineTimer(const DeadlineTimer&) = delete;
  DeadlineTimer& operator=(const DeadlineTimer&) = delete;
  ~DeadlineTimer() { stop(); }

  /// kNone for a deadline that is never() and after stop().
  [[nodiscard]] Token arm(Deadline deadline, std::function<void()> callback);
  /// After it returns the callback does not run any more. kNone is ignored.
  void disarm(Token token);
  /// Drops all and joins the thread. Not from a callback.
  void stop();

 private:
  struct Entry {
    Deadline::Clock::time_point time;
    std::function<void()> callback;
  };
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Token, Entry> entries_;  // a handful: one for each waiting thread
  Deadline::Clock::time_point wake_ = Deadline::Clock::time_point::max();
  Token last_ = kNone;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace meshstage
