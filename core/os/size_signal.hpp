#pragma once
#include <signal.h>

#include <ctime>

namespace meshstage::detail {

/// Writing past `ulimit -f` raises SIGXFSZ, which ends a program that has no handler for it. The
/// constructor blocks the signal in the calling thread, and the destructor consumes the signal that
/// a write in between raised: so the write only fails with EFBIG. The program's handler and
/// disposition stay as they are, and a SIGXFSZ that was pending before stays pending.
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
