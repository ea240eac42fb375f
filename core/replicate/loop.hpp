#pragma once
#include <atomic>
#include <chrono>
#include <deque>
#include <exception>
#include <functional>
#include <map>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>

namespace meshstage::replicate {

/// For tests: called on the loop's thread with true before each task, and with false when the task
/// is over and destroyed.
using TaskObserver = std::function<void(bool begins)>;

/// The engine's thread (`ms-agent`). It runs tasks in the order in which they were posted, and
/// timed tasks when their time has come. Only this thread touches the protocol's state. No task may
/// block, because votes and deaths wait behind it.
/// Threads: any may make all calls, except where a comment says otherwise.
class Loop {
 public:
  /// `on_failure` gets each exception that a task throws or that fail() is given. It runs on the
  /// loop's thread.
  explicit Loop(FailureHandler on_failure, TaskObserver on_task = {});
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  ~Loop();

  /// Runs `task` after all that were posted before. After stop() the task is dropped (destroyed).
  void post(std::function<void()> task);
  /// Runs `task` at the time `when`; with never() the task is dropped.
  void post_at(Deadline when, std::function<void()> task);
  /// Gives `failure` to the handler, before any further task. Allocates nothing. A second failure
  /// before the handler has run is dropped.
  void fail(std::exception_ptr failure) noexcept;
  /// Runs `task` on the loop and waits for its end. Must not be called on the loop's thread.
  void run(const std::function<void()>& task);
  /// False while one task, or one call of the failure handler, has taken longer than `length`.
  /// Never waits.
  [[nodiscard]] bool answers_within(Deadline::Clock::duration length) const noexcept;
  /// Drops tasks that have not started, waits for the one that runs, and joins the thread.
  /// Idempotent. Must not be called on the loop's thread.
  void stop() noexcept;

 private:
  void serve();
  void drop_tasks() noexcept;

  const FailureHandler on_failure_;
  const TaskObserver on_task_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> queue_ MESHSTAGE_GUARDED_BY(mutex_);
  std::multimap<Deadline::Clock::time_point, std::function<void()>> timed_
      MESHSTAGE_GUARDED_BY(mutex_);
  std::exception_ptr failure_ MESHSTAGE_GUARDED_BY(mutex_);
  bool stopping_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  /// When the present task began, as a count of Deadline::Clock; 0 between tasks.
  std::atomic<Deadline::Clock::rep> busy_since_{0};
  Thread thread_;  // last: it uses all of the above
};

}  // namespace meshstage::replicate
