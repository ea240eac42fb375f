#pragma once
#include <deque>
#include <optional>
#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/replicate/results.hpp>

#include "waiting.hpp"

namespace meshstage::python {

/// Log lines on their way from threads of C++, which never call Python, to the thread of Python
/// that hands them on.
class LogQueue {
 public:
  void push(const LogLine& line) {
    const MutexLock lock(mutex_);
    lines_.push_back(line);
    changed_.notify_all();
  }
  /// What was pushed is still popped; then pop() says that it is over.
  void close() {
    const MutexLock lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  /// The next line, waiting for it; nothing when the queue is closed and empty. Needs the GIL,
  /// which it gives up while it waits. Not on Python's main thread: it looks at no signals.
  std::optional<LogLine> pop() {
    const nanobind::gil_scoped_release release;
    MutexLock lock(mutex_);
    changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return closed_ || !lines_.empty(); });
    if (lines_.empty()) return std::nullopt;
    LogLine line = std::move(lines_.front());
    lines_.pop_front();
    return line;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::deque<LogLine> lines_ MESHSTAGE_GUARDED_BY(mutex_);
  bool closed_ MESHSTAGE_GUARDED_BY(mutex_) = false;
};

}  // namespace meshstage::python
