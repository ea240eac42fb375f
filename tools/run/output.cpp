#include "tools/run/output.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "tools/command/terminal.hpp"

namespace meshstage::tools::run {

void LineCutter::take(std::string_view bytes) {
  while (!bytes.empty()) {
    const auto newline = bytes.find('\n');
    const auto piece = bytes.substr(0, newline);
    unfinished_ += piece;
    bytes.remove_prefix(newline == std::string_view::npos ? bytes.size() : newline + 1);
    if (newline != std::string_view::npos || unfinished_.size() >= kLongest) {
      sink_(unfinished_);
      unfinished_.clear();
    }
  }
}

void LineCutter::end() {
  if (unfinished_.empty()) return;
  sink_(unfinished_);
  unfinished_.clear();
}

void Tail::add(std::string_view line) {
  lines_.emplace_back(line);
  if (lines_.size() > most_) lines_.pop_front();
}

std::string line_prefix(int rank, int world_size, bool colour) {
  std::string number = std::to_string(rank);
  const std::size_t width = std::to_string(world_size - 1).size();
  number.insert(0, width - std::min(width, number.size()), ' ');
  const std::string text = "[" + number + "]";
  if (!colour) return text + " ";
  static constexpr std::array<const char*, 6> kColours{"36", "33", "32", "35", "34", "31"};
  return std::string("\033[") + kColours.at(static_cast<std::size_t>(rank) % kColours.size()) +
         "m" + text + "\033[0m ";
}

bool write_all(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor, bytes.data(), bytes.size());
    if (n >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {  // somebody made the terminal non-blocking
      pollfd wanted{descriptor, POLLOUT, 0};
      (void)::poll(&wanted, 1, -1);
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

void write_message(const std::string& text) {
  const std::string line = "meshstage run: " + text;
  const auto width = terminal_width(STDERR_FILENO);  // now: people resize their terminals
  (void)write_all(STDERR_FILENO, (width ? folded(line, *width) : line) + "\n");
}

}  // namespace meshstage::tools::run
