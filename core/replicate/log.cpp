#include <meshstage/core/replicate/log.hpp>

#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include <meshstage/core/os/standard_error.hpp>
#include <meshstage/core/replicate/report.hpp>

namespace meshstage::replicate {
namespace {

/// Gives `line` to `sink`; without one, warnings go to standard error. If `sink` throws, the line
/// and the exception's text go to standard error, and this returns false.
bool write_line(const LogSink& sink, const LogLine& line) noexcept {
  try {
    if (sink || line.level == LogLine::Level::kWarning) tell_or_write(sink, line, line.text);
    return true;
  } catch (...) {  // the boundary of a user's callback
    write_to_standard_error(line.text);
    try {
      write_to_standard_error(
          "meshstage: the log callback threw: " + text_of(std::current_exception()) +
          "; warnings go to standard error from now on");
    } catch (...) {  // NOLINT(bugprone-empty-catch): no memory for the text; nobody is left to tell
    }
    return false;
  }
}

}  // namespace

Log::Log(LogSink sink) : sink_(std::move(sink)) {}

void Log::write(LogLine line) noexcept {
  try {
    lines_.post([this, written = std::move(line)] {
      if (!write_line(sink_, written)) sink_ = {};
    });
  } catch (const std::bad_alloc&) {
    say_no_memory();
  }
}

void Log::say_no_memory() noexcept { std::fputs("meshstage: no memory for a log line\n", stderr); }

}  // namespace meshstage::replicate
