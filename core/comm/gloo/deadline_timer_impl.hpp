#pragma once
#include <cstdint>
#include <functional>
#include <map>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>

namespace meshstage {

/// Calls a function when a deadline passes, from one thread that starts with the first armed
/// deadline. It is the only way to leave a wait of Gloo early without ruining the wait's context.
/// What a callback throws is written to standard error, and the other deadlines still come.
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
    Deadline time;
    std::function<void()> callback;
  };
  void run();
  [[nodiscard]] Deadline earliest() const MESHSTAGE_REQUIRES(mutex_);

  Mutex mutex_;
  CondVar changed_;
  /// One entry for each waiting thread, so a handful.
  std::map<Token, Entry> entries_ MESHSTAGE_GUARDED_BY(mutex_);
  /// The time at which the thread wakes by itself.
  Deadline wake_ MESHSTAGE_GUARDED_BY(mutex_) = Deadline::never();
  Token last_ MESHSTAGE_GUARDED_BY(mutex_) = kNone;
  bool stopped_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool started_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  Mutex joining_;
  Thread thread_ MESHSTAGE_GUARDED_BY(joining_);  // last: it uses all of the above
};

}  // namespace meshstage
