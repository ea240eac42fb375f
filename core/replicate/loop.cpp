#include <meshstage/core/replicate/loop.hpp>

#include <utility>

namespace meshstage::replicate {

Loop::Loop(FailureHandler on_failure, TaskObserver on_task)
    : on_failure_(std::move(on_failure)),
      on_task_(std::move(on_task)),
      thread_("ms-agent", [this] { serve(); }) {}

Loop::~Loop() { stop(); }

void Loop::post(std::function<void()> task) {
  const MutexLock lock(mutex_);
  if (stopping_) return;
  queue_.push_back(std::move(task));
  changed_.notify_all();
}

void Loop::post_at(Deadline when, std::function<void()> task) {
  if (when.is_never()) return;
  const MutexLock lock(mutex_);
  if (stopping_) return;
  timed_.emplace(when.time(), std::move(task));
  changed_.notify_all();
}

void Loop::fail(std::exception_ptr failure) noexcept {
  const MutexLock lock(mutex_);
  if (stopping_ || failure_) return;
  failure_ = std::move(failure);
  changed_.notify_all();
}

void Loop::run(const std::function<void()>& task) {
  bool done = false;  // guarded by mutex_
  post([&] {
    // Also done if the task throws, because the caller waits in any case.
    struct Tell {
      Loop& loop;
      bool& done;
      ~Tell() {
        const MutexLock lock(loop.mutex_);
        done = true;
        loop.changed_.notify_all();
      }
    } tell{*this, done};
    task();
  });
  MutexLock lock(mutex_);
  changed_.wait(lock, [&]() MESHSTAGE_REQUIRES(mutex_) { return done || stopping_; });
}

bool Loop::answers_within(Deadline::Clock::duration length) const noexcept {
  using Clock = Deadline::Clock;
  const Clock::rep since = busy_since_;
  return since == 0 || Clock::now() - Clock::time_point(Clock::duration(since)) <= length;
}

void Loop::stop() noexcept {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
  drop_tasks();
}

/// Destroys each task without the mutex, because what a task captured may call the loop. Allocates
/// nothing.
void Loop::drop_tasks() noexcept {
  MutexLock lock(mutex_);
  while (!queue_.empty() || !timed_.empty()) {
    std::function<void()> task;
    if (!queue_.empty()) {
      task = std::move(queue_.front());
      queue_.pop_front();
    } else {
      task = std::move(timed_.begin()->second);
      timed_.erase(timed_.begin());
    }
    lock.unlock();
    task = nullptr;
    lock.lock();
  }
}

void Loop::serve() {
  MutexLock lock(mutex_);
  while (true) {
    const Deadline next = timed_.empty() ? Deadline::never() : Deadline::at(timed_.begin()->first);
    (void)changed_.wait_until(lock, next, [&]() MESHSTAGE_REQUIRES(mutex_) {
      return stopping_ || failure_ || !queue_.empty() ||
             (!timed_.empty() && timed_.begin()->first < next.time());
    });
    if (stopping_) return;
    std::exception_ptr failure = std::exchange(failure_, nullptr);
    std::function<void()> task;
    if (!failure) {
      if (!timed_.empty() && Deadline::at(timed_.begin()->first).expired()) {
        task = std::move(timed_.begin()->second);
        timed_.erase(timed_.begin());
      } else if (!queue_.empty()) {
        task = std::move(queue_.front());
        queue_.pop_front();
      } else {
        continue;
      }
    }
    lock.unlock();
    busy_since_ = Deadline::Clock::now().time_since_epoch().count();
    if (task) {
      if (on_task_) on_task_(true);
      try {
        task();
      } catch (...) {  // the boundary: a task may throw anything
        failure = std::current_exception();
      }
      task = nullptr;  // what the task captured goes before the next one runs
      if (on_task_) on_task_(false);
    }
    if (failure) report_failure(on_failure_, "ms-agent", std::move(failure));
    busy_since_ = 0;
    lock.lock();
  }
}

}  // namespace meshstage::replicate
