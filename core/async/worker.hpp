#pragma once
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// One named thread that runs tasks in order. A task that throws ends alone: its exception goes to
/// the handler, and the next task runs.
/// Threads: post() from any; tasks and the handler run on the worker's.
class MESHSTAGE_API Worker {
 public:
  /// `name` shows in debuggers and `ps` (15 characters are kept). `on_failure` gets whatever a task
  /// throws; null: it is written to standard error. Throws IoError if the system has no more
  /// threads.
  explicit Worker(std::string name, FailureHandler on_failure = {});
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  /// Drops tasks that have not started, waits for the one that runs, joins the thread. Does nothing
  /// in a forked child.
  ~Worker();

  /// Runs `task` after all that were posted before. After stop() the task is dropped (destroyed).
  void post(std::function<void()> task);
  /// Waits until nothing is queued or running.
  void drain();
  /// As the destructor. Idempotent. Not from the worker's own thread.
  void stop();

 private:
  class State;
  std::unique_ptr<State, DeleteHere> state_;
};

}  // namespace meshstage
