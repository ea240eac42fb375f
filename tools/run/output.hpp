#pragma once
#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace meshstage::tools::run {

/// Cuts what one stream of a process writes into lines, and remembers the last of them.
class LineCutter {
 public:
  /// A line that grows longer is passed on in pieces of so many bytes.
  static constexpr std::size_t kLongest = 65'536;

  using Sink = std::function<void(std::string_view line)>;
  explicit LineCutter(Sink sink) : sink_(std::move(sink)) {}
  void take(std::string_view bytes);
  /// The process ended: an unfinished line is a line.
  void end();

 private:
  Sink sink_;
  std::string unfinished_;
};

/// The last lines of a rank, for the report of what ended the job.
class Tail {
 public:
  explicit Tail(std::size_t lines = 20) : most_(lines) {}
  void add(std::string_view line);
  void clear() { lines_.clear(); }
  [[nodiscard]] const std::deque<std::string>& lines() const { return lines_; }

 private:
  std::size_t most_;
  std::deque<std::string> lines_;
};

/// "[2] ", padded to the width of the job's largest rank; in the rank's colour if asked for.
[[nodiscard]] std::string line_prefix(int rank, int world_size, bool colour);

/// Writes all of it to a descriptor. False once nobody reads there any more.
bool write_all(int descriptor, std::string_view bytes);

/// Writes a line of the command's own, "meshstage run: TEXT", to standard error. On a terminal the
/// line is folded to its width.
void write_message(const std::string& text);

}  // namespace meshstage::tools::run
