#pragma once
#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "tools/process/process.hpp"

namespace meshstage::tools::hosts {

/// A program that runs a shell script, most of which sets something up. It has a pipe as its
/// standard input, which ends when this object or this process does.
class Script {
 public:
  /// Starts `words`; the first is sought in the directories of system programs, too. Throws
  /// IoError.
  explicit Script(std::vector<std::string> words);
  Script(const Script&) = delete;
  Script& operator=(const Script&) = delete;
  /// end()
  ~Script();

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Waits until it writes the line "ready" (true), or ends before that. If it does neither within
  /// that time it is killed, and said() says so.
  [[nodiscard]] bool is_ready(std::chrono::milliseconds within = std::chrono::seconds(30));
  /// What it wrote so far, in one line: standard output and error.
  [[nodiscard]] std::string said() const;
  /// Ends its standard input and waits for its end; true if it ended with 0.
  bool end();
  /// SIGKILL for it and for what it started in its process group; waits for its own end.
  void kill();

 private:
  bool reap();

  pid_t pid_ = -1;
  Descriptor input_, output_;
  std::string text_;
};

}  // namespace meshstage::tools::hosts
