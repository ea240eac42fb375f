#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace meshstage::tools {

/// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor() { reset(); }
  [[nodiscard]] int get() const noexcept { return fd_; }
  void reset() noexcept;

 private:
  int fd_;
};

/// Both ends are closed by exec. Throws IoError.
struct Pipe {
  Descriptor read, write;
  Pipe();
};

/// CLOCK_MONOTONIC in nanoseconds, comparable between the processes of a host.
std::int64_t now_ns();

/// How a process ended.
struct End {
  bool signalled = false;
  int code = 0;                            ///< Exit code, or the signal.
  [[nodiscard]] std::string text() const;  ///< "exit code 1", "signal 9"
  /// What a shell reports: the exit code, or 128 + the signal.
  [[nodiscard]] int exit_status() const { return signalled ? 128 + code : code; }
  /// Of the status that waitpid() reported for a process that ended.
  static End of(int wait_status);
};

/// The null-terminated array that exec takes. It points into `texts`, which must stay as it is.
std::vector<char*> exec_array(std::vector<std::string>& texts);

}  // namespace meshstage::tools
