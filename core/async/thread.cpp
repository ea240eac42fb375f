#include <meshstage/core/async/thread.hpp>

#include <pthread.h>
#include <signal.h>

#include <cstdio>
#include <memory>
#include <system_error>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

void write_failure(const std::string& thread, const std::exception_ptr& failure) noexcept {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "meshstage: thread %s: %s\n", thread.c_str(), e.what());
  } catch (...) {  // anything may be thrown; there is no more to say of it
    std::fprintf(stderr, "meshstage: thread %s: an exception of an unknown type\n", thread.c_str());
  }
}

/// A thread started while this lives leaves the program's signals to the program's threads. It
/// keeps those that its own code causes, so that a crash handler sees them, and a profiler's.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int kept : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF}) {
      sigdelset(&blocked, kept);
    }
    ::pthread_sigmask(SIG_BLOCK, &blocked, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

}  // namespace

void report_failure(const FailureHandler& handler, const std::string& thread,
                    std::exception_ptr failure) noexcept {
  if (!handler) return write_failure(thread, failure);
  try {
    handler(failure);
  } catch (...) {  // the handler is the user's; both failures are written
    write_failure(thread, failure);
    write_failure(thread, std::current_exception());
  }
}

Thread::Thread(std::string name, std::function<void()> body, FailureHandler on_failure) {
  const SignalsBlocked blocked;
  try {
    thread_ =
        std::thread([name, body = std::move(body), on_failure = std::move(on_failure)]() mutable {
          pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
          try {
            body();
            body = nullptr;  // what it captured goes inside the boundary
          } catch (...) {    // the boundary of this thread
            report_failure(on_failure, name, std::current_exception());
          }
        });
  } catch (const std::system_error& e) {
    throw_errno("start the thread", name, e.code().value());
  }
}

Thread& Thread::operator=(Thread&& other) noexcept {
  if (this != &other) {
    join();
    origin_ = other.origin_;
    thread_ = std::move(other.thread_);
  }
  return *this;
}

void Thread::join() noexcept {
  if (!thread_.joinable()) return;
  if (origin_.is_here()) {
    thread_.join();
  } else {
    // It can be neither joined nor detached here; the handle is forgotten.
    std::construct_at(&thread_);
  }
}

StoppableThread::StoppableThread(std::string name, std::function<void(const std::stop_token&)> body,
                                 FailureHandler on_failure)
    : thread_(
          std::move(name), [run = std::move(body), stop = stop_.get_token()] { run(stop); },
          std::move(on_failure)) {}

StoppableThread::~StoppableThread() {
  if (origin_.is_here()) stop_.request_stop();
}

}  // namespace meshstage
