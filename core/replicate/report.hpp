#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>

#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/replicate/observer.hpp>
#include <meshstage/core/replicate/results.hpp>

namespace meshstage {

using LogSink = std::function<void(const LogLine&)>;

/// Gives `line` to `log`; without a log, warnings go to standard error. If `log` throws, the line
/// and the exception's text go to standard error, and this returns false.
bool write_line(const LogSink& log, const LogLine& line) noexcept;

/// The exception's text.
std::string text_of(const std::exception_ptr& error);
/// message() of a Fenced; nothing for every other exception, and for none.
std::optional<std::string> fenced_by(const std::exception_ptr& error);

namespace replicate {

/// The user's two callbacks: log lines and named points. Neither can end a thread. A log that threw
/// is not called again; its lines go to standard error. An observer that threw is not called again,
/// and the generation ends.
/// The log is called on a thread of its own (`ms-log`), so a log that waits (for a terminal that
/// was stopped, for a disk) keeps nobody else waiting. The observer is called where the point is
/// passed, so that it can end the process there.
/// Threads: any.
class Reporter {
 public:
  /// `on_failure` gets the observer's exception.
  Reporter(std::string job, int rank, LogSink log, Observer observer, FailureHandler on_failure);
  Reporter(const Reporter&) = delete;
  Reporter& operator=(const Reporter&) = delete;
  /// Waits until the log has every line.
  ~Reporter() { lines_.drain(); }

  void set_generation(std::uint64_t generation) noexcept { generation_ = generation; }
  void info(const std::string& text) noexcept { write(LogLine::Level::kInfo, text); }
  void warn(const std::string& text) noexcept { write(LogLine::Level::kWarning, text); }
  void reach(protocol::Point point, ImageId id, int peer = -1, std::uint64_t chunk = 0,
             std::uint64_t chunks = 0) noexcept;

 private:
  void write(LogLine::Level level, const std::string& text) noexcept;

  const std::string job_;
  const int rank_;
  const LogSink log_;
  const Observer observer_;
  const FailureHandler on_failure_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<bool> observer_failed_{false};
  bool log_failed_ = false;  ///< The log's thread only.
  Worker lines_{"ms-log"};   ///< Last: it uses the log.
};

}  // namespace replicate
}  // namespace meshstage
