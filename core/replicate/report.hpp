#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>

#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/replicate/log.hpp>
#include <meshstage/core/replicate/observer.hpp>
#include <meshstage/core/replicate/results.hpp>

namespace meshstage {

/// The exception's text.
std::string text_of(const std::exception_ptr& error);
/// message() of a Fenced; nothing for every other exception, and for none.
std::optional<std::string> fenced_by(const std::exception_ptr& error);

namespace replicate {

/// The engine's reports to its user: lines for the log, and named points for the observer. An
/// observer that threw is not called again, and the generation ends. The observer is called where
/// the point is passed, so that it can end the process there.
/// Threads: any.
class Reporter {
 public:
  /// `on_failure` gets the observer's exception.
  Reporter(std::string job, int rank, std::shared_ptr<Log> log, Observer observer,
           FailureHandler on_failure);
  Reporter(const Reporter&) = delete;
  Reporter& operator=(const Reporter&) = delete;

  void set_generation(std::uint64_t generation) noexcept { generation_ = generation; }
  void info(const std::string& text) noexcept { write(LogLine::Level::kInfo, text); }
  void warn(const std::string& text) noexcept { write(LogLine::Level::kWarning, text); }
  void reach(Point point, ImageId id, int peer = -1, std::uint64_t chunk = 0,
             std::uint64_t chunks = 0) noexcept;

 private:
  void write(LogLine::Level level, const std::string& text) noexcept;

  const std::string job_;
  const int rank_;
  const std::shared_ptr<Log> log_;
  const Observer observer_;
  const FailureHandler on_failure_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<bool> observer_failed_{false};
};

}  // namespace replicate
}  // namespace meshstage
