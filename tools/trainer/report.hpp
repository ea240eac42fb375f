#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace trainer {

/// One line of the report, built field by field: Line("step").add("step", 7).
class Line {
 public:
  /// Stamps the line with the monotonic clock, which all processes of a host share.
  explicit Line(std::string_view what);
  Line& add(std::string_view name, std::uint64_t number);
  Line& add(std::string_view name, int number);
  Line& add(std::string_view name, double number);
  Line& add(std::string_view name, std::string_view text);
  [[nodiscard]] std::string text() const { return text_ + "}\n"; }

 private:
  std::string text_;
};

/// Tells whoever started the trainer what happens, as JSON lines on a file descriptor:
/// `{"what":"trained","at":123456789,"step":7,"loss":2.5}`, `at` in nanoseconds of CLOCK_MONOTONIC.
/// One write for each line, so that lines of several threads do not mix and none is lost when the
/// process is killed. README.md lists them.
class Report {
 public:
  /// -1: silent.
  explicit Report(int descriptor) : descriptor_(descriptor) {}
  /// Any thread. A reader that went away is no error: there is nobody left to tell.
  void send(const Line& line) const;

 private:
  int descriptor_;
};

}  // namespace trainer
