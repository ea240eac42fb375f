#pragma once
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <utility>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/origin.hpp>

/// Clang's thread-safety analysis (-Wthread-safety): a member says which mutex guards it, a
/// function says which mutex its caller must hold, and clang checks both. For other compilers these
/// macros are empty. A predicate given to CondVar also says which mutex it needs:
///   changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return done_; });
#if defined(__clang__)
#define MESHSTAGE_THREAD_ATTRIBUTE(x) __attribute__((x))
#else
#define MESHSTAGE_THREAD_ATTRIBUTE(x)
#endif
/// Of a member: read and written with the mutex held.
#define MESHSTAGE_GUARDED_BY(mutex) MESHSTAGE_THREAD_ATTRIBUTE(guarded_by(mutex))
/// Of a pointer: what it points to is read and written with the mutex held.
#define MESHSTAGE_PT_GUARDED_BY(mutex) MESHSTAGE_THREAD_ATTRIBUTE(pt_guarded_by(mutex))
/// Of a function: the caller holds the mutex.
#define MESHSTAGE_REQUIRES(...) MESHSTAGE_THREAD_ATTRIBUTE(requires_capability(__VA_ARGS__))
/// Of a function: the caller does not hold the mutex.
#define MESHSTAGE_EXCLUDES(...) MESHSTAGE_THREAD_ATTRIBUTE(locks_excluded(__VA_ARGS__))
/// Of a function: it returns with the mutex held.
#define MESHSTAGE_ACQUIRE(...) MESHSTAGE_THREAD_ATTRIBUTE(acquire_capability(__VA_ARGS__))
/// Of a function: it returns with the mutex released.
#define MESHSTAGE_RELEASE(...) MESHSTAGE_THREAD_ATTRIBUTE(release_capability(__VA_ARGS__))
/// Of a function that the analysis cannot follow; a comment beside it says why the function is
/// right.
#define MESHSTAGE_NO_THREAD_ANALYSIS MESHSTAGE_THREAD_ATTRIBUTE(no_thread_safety_analysis)

namespace meshstage {

/// std::mutex with the annotations that clang's thread-safety analysis needs. Lock it by MutexLock.
class MESHSTAGE_THREAD_ATTRIBUTE(capability("mutex")) Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void lock() MESHSTAGE_ACQUIRE() { mutex_.lock(); }
  void unlock() MESHSTAGE_RELEASE() { mutex_.unlock(); }

 private:
  friend class MutexLock;
  std::mutex mutex_;
};

/// Holds a Mutex from construction to destruction, except between unlock() and lock().
class MESHSTAGE_THREAD_ATTRIBUTE(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) MESHSTAGE_ACQUIRE(mutex) : lock_(mutex.mutex_) {}
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;
  ~MutexLock() MESHSTAGE_RELEASE() = default;
  void lock() MESHSTAGE_ACQUIRE() { lock_.lock(); }
  void unlock() MESHSTAGE_RELEASE() { lock_.unlock(); }

 private:
  friend class CondVar;
  std::unique_lock<std::mutex> lock_;
};

/// A condition variable for a Mutex. Its waits end at a Deadline, never after a duration, so that
/// no sum of times overflows. In a forked child the destructor does nothing: the threads that wait
/// on the CondVar do not exist there.
class CondVar {
 public:
  CondVar() : changed_() {}
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;
  ~CondVar() {
    if (origin_.is_here()) changed_.~condition_variable_any();
  }
  void notify_one() noexcept { changed_.notify_one(); }
  void notify_all() noexcept { changed_.notify_all(); }

  /// Waits until `ready()`, which runs with the mutex held.
  template <class Ready>
  void wait(MutexLock& lock, Ready ready) {
    changed_.wait(lock.lock_, std::move(ready));
  }
  /// The same until the deadline; returns what `ready()` says then.
  template <class Ready>
  [[nodiscard]] bool wait_until(MutexLock& lock, Deadline deadline, Ready ready) {
    if (!deadline.is_never()) {
      return changed_.wait_until(lock.lock_, deadline.time(), std::move(ready));
    }
    changed_.wait(lock.lock_, std::move(ready));
    return true;
  }
  /// The same until the deadline or a stop is requested; returns what `ready()` says then.
  template <class Ready>
  [[nodiscard]] bool wait_until(MutexLock& lock, const std::stop_token& stop, Deadline deadline,
                                Ready ready) {
    if (!deadline.is_never()) {
      return changed_.wait_until(lock.lock_, stop, deadline.time(), std::move(ready));
    }
    return changed_.wait(lock.lock_, stop, std::move(ready));
  }

 private:
  ProcessOrigin origin_;
  union {  // so that the destructor above decides whether it is destroyed
    std::condition_variable_any changed_;
  };
};

}  // namespace meshstage
