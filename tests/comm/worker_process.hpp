// A worker program that a test starts, talks to through its standard input, stops and kills.
#pragma once
#include <chrono>
#include <string>
#include <vector>

#include <sys/types.h>

namespace meshstage::testing {

/// Started by exec, with nothing inherited but standard output and error. Killed and reaped by the
/// destructor.
class WorkerProcess {
 public:
  WorkerProcess(const std::string& program, const std::vector<std::string>& arguments);
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;
  ~WorkerProcess();

  /// One line to its standard input.
  void tell(const std::string& line);
  void signal(int number);
  /// False once it has ended (and was reaped).
  [[nodiscard]] bool running();
  /// Waits until it has ended, at most so long; does not reap it, so finish() has its status.
  [[nodiscard]] bool ends_within(std::chrono::milliseconds time);
  /// SIGSTOP; returns once none of its threads runs any more.
  void stop();
  /// Returns once it has stopped or ended by itself.
  void wait_until_stopped();
  /// SIGKILL (which also ends a stopped process), then reaps. Idempotent.
  void kill();
  void end_input();
  /// Ends its standard input and waits for it; the exit status, 128 + n if signal n ended it.
  int finish();

 private:
  pid_t pid_ = -1;
  int input_ = -1;
};

/// The folder of the test program, where its workers are too.
std::string own_folder();

/// A new folder below the temporary directory, removed with all in it by the destructor.
class TemporaryFolder {
 public:
  TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder();
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace meshstage::testing
