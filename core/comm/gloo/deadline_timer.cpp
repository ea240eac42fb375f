#include <pthread.h>

#include <algorithm>
#include <utility>

#include <meshstage/core/comm/gloo/deadline_timer_impl.hpp>

namespace meshstage {

DeadlineTimer::Token DeadlineTimer::arm(Deadline deadline, std::function<void()> callback) {
  if (deadline.is_never()) return kNone;
  const std::lock_guard lock(mutex_);
  if (stopped_) return kNone;
  const Token token = ++last_;
  entries_.emplace(token, Entry{deadline.time(), std::move(callback)});
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  // Most deadlines are later than the one the thread already waits for: it need not wake.
  if (deadline.time() < wake_) changed_.notify_all();
  return token;
}

void DeadlineTimer::disarm(Token token) {
  if (token == kNone) return;
  const std::lock_guard lock(mutex_);
  entries_.erase(token);
}

void DeadlineTimer::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    entries_.clear();
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void DeadlineTimer::run() {
  pthread_setname_np(pthread_self(), "ms-deadlines");
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    wake_ = Deadline::Clock::time_point::max();
    for (const auto& [token, entry] : entries_) wake_ = std::min(wake_, entry.time);
    if (wake_ == Deadline::Clock::time_point::max()) {
      changed_.wait(lock);
    } else {
      changed_.wait_until(lock, wake_);
    }
    const auto now = Deadline::Clock::now();
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      if (entry->second.time > now) {
        ++entry;
        continue;
      }
      // Under the mutex, so that disarm() knows that it is not running.
      entry->second.callback();
      entry = entries_.erase(entry);
    }
  }
}

}  // namespace meshstage
