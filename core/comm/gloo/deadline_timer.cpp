#include <exception>
#include <utility>

#include <meshstage/core/comm/gloo/deadline_timer_impl.hpp>

namespace meshstage {

DeadlineTimer::Token DeadlineTimer::arm(Deadline deadline, std::function<void()> callback) {
  if (deadline.is_never()) return kNone;
  const MutexLock starting(joining_);
  const MutexLock lock(mutex_);
  if (stopped_) return kNone;
  if (!started_) {
    thread_ = Thread("ms-deadlines", [this] { run(); });
    started_ = true;
  }
  const Token token = ++last_;
  entries_.emplace(token, Entry{deadline, std::move(callback)});
  // Most deadlines are later than the one the thread already waits for: it need not wake.
  if (deadline.time() < wake_.time()) changed_.notify_all();
  return token;
}

void DeadlineTimer::disarm(Token token) {
  if (token == kNone) return;
  const MutexLock lock(mutex_);
  entries_.erase(token);
}

void DeadlineTimer::stop() {
  {
    const MutexLock lock(mutex_);
    stopped_ = true;
    entries_.clear();
    changed_.notify_all();
  }
  const MutexLock lock(joining_);
  thread_.join();
}

Deadline DeadlineTimer::earliest() const {
  Deadline first = Deadline::never();
  for (const auto& [token, entry] : entries_) first = first.earlier(entry.time);
  return first;
}

void DeadlineTimer::run() {
  MutexLock lock(mutex_);
  while (!stopped_) {
    wake_ = earliest();
    (void)changed_.wait_until(lock, wake_, [this]() MESHSTAGE_REQUIRES(mutex_) {
      return stopped_ || earliest().time() < wake_.time();
    });
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      if (!entry->second.time.expired()) {
        ++entry;
        continue;
      }
      // Under the mutex, so that disarm() knows that it is not running.
      try {
        entry->second.callback();
      } catch (...) {  // the boundary of a callback: the other deadlines still come
        report_failure({}, "ms-deadlines", std::current_exception());
      }
      entry = entries_.erase(entry);
    }
  }
}

}  // namespace meshstage
