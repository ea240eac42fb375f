#pragma once
#include <exception>
#include <functional>
#include <stop_token>
#include <string>
#include <thread>

#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Gets the exception that a thread's code threw: any exception, not only Error. Runs on that
/// thread.
using FailureHandler = std::function<void(std::exception_ptr)>;

/// A named thread that ends before its object does. An exception of its body goes to a handler, so
/// no exception ends the program. Signals sent to the process go to the program's own threads. In a
/// forked child, which has no such thread, the object does nothing.
/// Threads: one at a time may use the object.
class MESHSTAGE_API Thread {
 public:
  /// No thread.
  Thread() = default;
  /// Runs `body` on a thread called `name` (debuggers and `ps` show its first 15 characters). Null
  /// `on_failure`: what `body` throws is written to standard error. Throws IoError if the system
  /// has no more threads.
  Thread(std::string name, std::function<void()> body, FailureHandler on_failure = {});
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  Thread(Thread&& other) noexcept = default;
  /// Joins the thread that this had.
  Thread& operator=(Thread&& other) noexcept;
  /// Joins. The owner must have asked the body to end before.
  ~Thread() { join(); }

  /// True from the start until join().
  [[nodiscard]] bool joinable() const noexcept { return thread_.joinable(); }
  /// Waits for the end of the body. Does nothing if there is no thread. The thread itself must not
  /// call it.
  void join() noexcept;

 private:
  ProcessOrigin origin_;
  std::thread thread_;
};

/// A Thread whose body is asked to end, by its token, when the object ends.
/// Threads: one at a time may use the object.
class MESHSTAGE_API StoppableThread {
 public:
  /// As Thread's constructor.
  StoppableThread(std::string name, std::function<void(const std::stop_token&)> body,
                  FailureHandler on_failure = {});
  StoppableThread(const StoppableThread&) = delete;
  StoppableThread& operator=(const StoppableThread&) = delete;
  /// Asks the body to end, and joins. Does nothing in a forked child.
  ~StoppableThread();

 private:
  ProcessOrigin origin_;
  std::stop_source stop_;
  Thread thread_;
};

/// Gives `failure` to `handler`. Writes it to standard error, with the thread's name, if there is
/// no handler, or if the handler throws.
MESHSTAGE_API void report_failure(const FailureHandler& handler, const std::string& thread,
                                  std::exception_ptr failure) noexcept;

}  // namespace meshstage
