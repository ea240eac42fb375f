#pragma once
#include <functional>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/replicate/results.hpp>

namespace meshstage {

using LogSink = std::function<void(const LogLine&)>;

namespace replicate {

/// The user's log. It is called on a thread of its own (`ms-log`), one line after the other, so a
/// log that waits (for a terminal that was stopped, for a disk) keeps nobody else waiting. Without
/// a log, warnings go to standard error. A log that threw is not called again: its lines go to
/// standard error, with one that says so.
/// Threads: any.
class Log {
 public:
  explicit Log(LogSink sink);
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;
  /// Waits until the log has every line.
  ~Log() { lines_.drain(); }

  void write(LogLine line) noexcept;
  /// Instead of write(), where there is no memory for the line.
  static void say_no_memory() noexcept;

 private:
  LogSink sink_;            ///< The log's thread only; empty once it threw.
  Worker lines_{"ms-log"};  ///< Last: it uses the sink.
};

}  // namespace replicate
}  // namespace meshstage
