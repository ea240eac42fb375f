#pragma once
#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace drill_runs {

struct Outcome {
  int code = -1;  ///< Exit code; 128 + signal if it was killed.
  std::string out, err;
  bool timed_out = false;
};

/// Runs a program to its end, in a process group of its own that is killed at the limit.
/// `environment`: additional "NAME=value". Sends `signal` to the program once its standard output
/// contains `signal_when`; calls `before_signal` right before that.
Outcome run(const std::filesystem::path& program, const std::vector<std::string>& arguments,
            std::chrono::seconds limit = std::chrono::seconds(240),
            const std::vector<std::string>& environment = {}, const std::string& signal_when = {},
            int signal = SIGINT, const std::function<void()>& before_signal = {});

/// A fresh directory, removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Names of what is in it.
  [[nodiscard]] std::vector<std::string> entries() const;

 private:
  std::filesystem::path path_;
};

/// The names that are created in a directory from now on: a drill's job is called after the
/// directory that it makes there.
class CreatedNames {
 public:
  explicit CreatedNames(const std::filesystem::path& directory);
  ~CreatedNames();
  CreatedNames(const CreatedNames&) = delete;
  CreatedNames& operator=(const CreatedNames&) = delete;
  /// Since the last call.
  [[nodiscard]] std::vector<std::string> read() const;

 private:
  int watch_ = -1;
};

/// Command lines of living processes that contain `text`.
std::vector<std::string> processes_with(const std::string& text);

/// The same, of those that still live after 20 s. For processes that the kernel ends with their
/// namespace, one after the other: it tells nobody.
std::vector<std::string> processes_that_stay(const std::string& text);

}  // namespace drill_runs
