#pragma once
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// One named thread that runs tasks in order. An exception of a task goes to the handler, and the
/// next task runs.
/// Threads: any may call post(); tasks and the handler run on the worker's thread.
class MESHSTAGE_API Worker {
 public:
  /// `name` shows in debuggers and `ps` (15 characters are kept). `on_failure` gets each exception
  /// of a task; if it is null, the exception is written to standard error. Throws IoError if the
  /// system has no more threads.
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
  /// Does what the destructor does. Idempotent. Must not be called from the worker's own thread.
  void stop();

 private:
  class State;
  std::unique_ptr<State, DeleteHere> state_;
};

}  // namespace meshstage
