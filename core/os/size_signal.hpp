#pragma once
#include <signal.h>

#include <ctime>

namespace meshstage::detail {

/// Writing past `ulimit -f` raises SIGXFSZ, which ends a program that has no handler for it. While
/// this lives the calling thread has the signal blocked, and the destructor takes out the one that
/// the call in between caused: so the call fails with EFBIG alone. The program's handler and
/// disposition stay as they are, and a SIGXFSZ of the program's own stays pending.
class SizeSignalBlocked {
 public:
  SizeSignalBlocked() {
    sigemptyset(&size_);
    sigaddset(&size_, SIGXFSZ);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGXFSZ) == 1;
    ::pthread_sigmask(SIG_BLOCK, &size_, &before_);
  }
  SizeSignalBlocked(const SizeSignalBlocked&) = delete;
  SizeSignalBlocked& operator=(const SizeSignalBlocked&) = delete;
  ~SizeSignalBlocked() {
    const timespec now{};
    while (!was_pending_ && ::sigtimedwait(&size_, nullptr, &now) == SIGXFSZ) {
    }
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t size_{};
  sigset_t before_{};
  bool was_pending_ = false;
};

}  // namespace meshstage::detail
