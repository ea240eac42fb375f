#include <meshstage/core/async/worker.hpp>

#include <deque>
#include <exception>
#include <utility>

#include <meshstage/core/async/mutex.hpp>

namespace meshstage {

class Worker::State {
 public:
  State(std::string name, FailureHandler on_failure)
      : name_(std::move(name)),
        on_failure_(std::move(on_failure)),
        thread_(name_, [this] { run(); }) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { stop(); }

  void post(std::function<void()> task) {
    const MutexLock lock(mutex_);
    if (stopping_) return;
    queue_.push_back(std::move(task));
    changed_.notify_all();
  }
  void drain() {
    MutexLock lock(mutex_);
    changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return queue_.empty() && !busy_; });
  }
  void stop() {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    thread_.join();
    // One by one and without the mutex, because what a task captured may call post(). Allocates
    // nothing, because the destructor calls this.
    MutexLock lock(mutex_);
    while (!queue_.empty()) {
      std::function<void()> dropped = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      dropped = nullptr;
      lock.lock();
    }
    changed_.notify_all();  // drain()
  }

 private:
  void run() {
    MutexLock lock(mutex_);
    while (true) {
      changed_.wait(lock,
                    [this]() MESHSTAGE_REQUIRES(mutex_) { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      auto task = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
      lock.unlock();
      std::exception_ptr failure;
      try {
        task();
      } catch (...) {  // the boundary: a task may throw anything
        failure = std::current_exception();
      }
      // Given away whole: who reads it last, on whatever thread, also ends it.
      if (failure) report_failure(on_failure_, name_, std::move(failure));
      task = nullptr;  // what the task captured goes before it counts as done
      lock.lock();
      busy_ = false;
      changed_.notify_all();
    }
  }

  const std::string name_;
  const FailureHandler on_failure_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> queue_ MESHSTAGE_GUARDED_BY(mutex_);
  bool busy_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool stopping_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  Thread thread_;  // last: it uses all of the above
};

Worker::Worker(std::string name, FailureHandler on_failure)
    : state_(new State(std::move(name), std::move(on_failure))) {}
Worker::~Worker() = default;
void Worker::post(std::function<void()> task) { state_->post(std::move(task)); }
void Worker::drain() { state_->drain(); }
void Worker::stop() {
  if (state_.get_deleter().origin.is_here()) state_->stop();
}

}  // namespace meshstage
