#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// One named thread that runs tasks in order. Threads: post() from any; tasks run on the worker's.
/// A task must not throw (it reports through its own Promise); one that does ends the program.
class MESHSTAGE_API Worker {
 public:
  /// `name` shows in debuggers and `ps` (15 characters are kept).
  explicit Worker(std::string name);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  /// Drops tasks that have not started, waits for the one that runs, joins the thread.
  ~Worker();

  /// Runs `task` after all that were posted before. After stop() the task is dropped (destroyed).
  void post(std::function<void()> task);
  /// Waits until nothing is queued or running.
  void drain();
  /// As the destructor. Idempotent. Not from the worker's own thread.
  void stop();

 private:
  void run();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool busy_ = false;
  bool stopping_ = false;
  std::string name_;
  std::thread thread_;
};

}  // namespace meshstage
