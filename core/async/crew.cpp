#include <meshstage/core/async/crew.hpp>

#include <algorithm>
#include <atomic>
#include <exception>
#include <list>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {
namespace {

struct Job {
  const std::function<void(std::size_t)>& task;
  const std::size_t count;
  std::atomic<std::size_t> next{0};
  unsigned wanted;       // helpers that may still join; guarded by the crew's mutex, as all below
  unsigned helpers = 0;  // at work
  std::exception_ptr error;
  CondVar left;  // helpers is 0
};

}  // namespace

class Crew::Impl {
 public:
  Impl(std::string name, unsigned hands) : name_(std::move(name)), hands_(std::max(1U, hands)) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    threads_.clear();  // joins
  }

  [[nodiscard]] unsigned hands() const noexcept { return hands_; }

  void run(std::size_t count, const std::function<void(std::size_t)>& task, unsigned hands) {
    hands = hands == 0 ? hands_ : std::min(hands, hands_);
    const auto helpers =
        static_cast<unsigned>(std::min<std::size_t>(hands, std::max<std::size_t>(count, 1)) - 1);
    if (helpers == 0 || !origin_.is_here()) {
      for (std::size_t i = 0; i < count; ++i) task(i);
      return;
    }
    Job job{.task = task, .count = count, .wanted = helpers, .error = nullptr, .left = {}};
    MutexLock lock(mutex_);
    start(helpers);
    const auto at = jobs_.insert(jobs_.end(), &job);
    for (unsigned i = 0; i < helpers; ++i) changed_.notify_one();
    lock.unlock();
    work(job);
    lock.lock();
    jobs_.erase(at);
    job.left.wait(lock, [&] { return job.helpers == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  // Fewer helpers than wanted are slower, not wrong: a limit on threads is no error.
  void start(unsigned helpers) MESHSTAGE_REQUIRES(mutex_) {
    try {
      while (threads_.size() < helpers) {
        const auto digits = std::to_string(threads_.size() + 1);
        threads_.emplace_back(name_.substr(0, 15 - digits.size()) + digits, [this] { help(); });
      }
    } catch (const IoError&) {  // NOLINT(bugprone-empty-catch)
    }
  }

  void help() {
    MutexLock lock(mutex_);
    while (true) {
      auto open = jobs_.end();
      changed_.wait(lock, [&]() MESHSTAGE_REQUIRES(mutex_) {
        open = std::find_if(jobs_.begin(), jobs_.end(),
                            [](const Job* job) { return job->wanted > 0; });
        return stopping_ || open != jobs_.end();
      });
      if (open == jobs_.end()) return;
      Job& job = **open;
      --job.wanted;
      ++job.helpers;
      lock.unlock();
      work(job);
      lock.lock();
      if (--job.helpers == 0) job.left.notify_all();
    }
  }

  void work(Job& job) {
    for (auto i = job.next++; i < job.count; i = job.next++) {
      try {
        job.task(i);
      } catch (...) {  // whatever a task throws is the caller's of run()
        job.next = job.count;
        const MutexLock lock(mutex_);
        if (!job.error) job.error = std::current_exception();
      }
    }
  }

  const std::string name_;
  const unsigned hands_;
  const ProcessOrigin origin_;
  Mutex mutex_;  // guards the jobs, too
  CondVar changed_;
  std::list<Job*> jobs_ MESHSTAGE_GUARDED_BY(mutex_);
  std::vector<Thread> threads_ MESHSTAGE_GUARDED_BY(mutex_);  // the destructor alone joins
  bool stopping_ MESHSTAGE_GUARDED_BY(mutex_) = false;
};

Crew::Crew(std::string name, unsigned hands) : impl_(new Impl(std::move(name), hands)) {}
Crew::~Crew() = default;

unsigned Crew::hands() const noexcept { return impl_->hands(); }

void Crew::run(std::size_t count, const std::function<void(std::size_t)>& task, unsigned hands) {
  impl_->run(count, task, hands);
}

}  // namespace meshstage
