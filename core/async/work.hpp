#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace detail {

/// Shared between one Promise and one Work.
template <class T>
struct WorkState {
  using Stored = std::conditional_t<std::is_void_v<T>, std::monostate, T>;
  const ProcessOrigin origin;
  Mutex mutex;
  CondVar changed;
  std::optional<Stored> value MESHSTAGE_GUARDED_BY(mutex);
  std::exception_ptr error MESHSTAGE_GUARDED_BY(mutex);
  bool done MESHSTAGE_GUARDED_BY(mutex) = false;
  std::function<void()> on_cancel MESHSTAGE_GUARDED_BY(mutex);

  template <class... V>
  bool set_value(V&&... v) {
    const MutexLock lock(mutex);
    if (done) return false;
    value.emplace(std::forward<V>(v)...);
    finish();
    return true;
  }
  bool set_error(std::exception_ptr e) {
    const MutexLock lock(mutex);
    if (done) return false;
    error = std::move(e);
    finish();
    return true;
  }

 private:
  void finish() MESHSTAGE_REQUIRES(mutex) {
    done = true;
    on_cancel = nullptr;
    changed.notify_all();
  }
};

/// The error Cancelled. Its message is left out where no memory is left for it, because a
/// destructor makes this error.
[[nodiscard]] MESHSTAGE_API std::exception_ptr abandoned() noexcept;

}  // namespace detail

/// The result of something that happens on another thread: the library's one future type.
/// Move-only. An error is delivered once, by get() or wait(); afterwards the Work is empty.
/// Destroying a Work that is not done cancels it. A Work owns no thread: the producer joins its own
/// threads. There are no continuations.
/// Threads: one consumer; the producer's Promise lives on any thread.
template <class T>
class Work {
 public:
  Work() = default;
  explicit Work(std::shared_ptr<detail::WorkState<T>> state) : state_(std::move(state)) {}
  Work(Work&&) noexcept = default;
  Work& operator=(Work&& other) noexcept {
    if (this != &other) {
      cancel();
      state_ = std::move(other.state_);
    }
    return *this;
  }
  ~Work() { cancel(); }

  /// False for a default-constructed Work, and after get().
  [[nodiscard]] bool valid() const noexcept { return state_ != nullptr; }
  /// True once a value or an error is there. An empty Work is ready: there is nothing to wait for.
  [[nodiscard]] bool ready() const {
    if (!state_) return true;
    detail::WorkState<T>& state = *state_;
    const MutexLock lock(state.mutex);
    return state.done;
  }
  /// Waits for the result without taking it. Returns at once on an empty Work.
  /// Throws Timeout at the deadline, and the producer's error if there is one (then the Work is
  /// empty).
  void wait(Deadline deadline = Deadline::never()) {
    if (!state_) return;
    const std::shared_ptr<detail::WorkState<T>> shared = state_;
    detail::WorkState<T>& state = *shared;
    std::exception_ptr error;
    {
      MutexLock lock(state.mutex);
      const auto done = [&state]() MESHSTAGE_REQUIRES(state.mutex) { return state.done; };
      if (!state.changed.wait_until(lock, deadline, done)) {
        throw Timeout("the result was not there by the deadline");
      }
      error = std::exchange(state.error, nullptr);
    }
    if (error == nullptr) return;
    state_.reset();
    std::rethrow_exception(error);
  }
  /// Waits, then takes the value; the Work is empty afterwards.
  T get(Deadline deadline = Deadline::never()) {
    if (!state_) throw InvalidState("get() on an empty Work");
    wait(deadline);
    const auto shared = std::exchange(state_, nullptr);
    detail::WorkState<T>& state = *shared;
    const MutexLock lock(state.mutex);
    if constexpr (!std::is_void_v<T>) return std::move(*state.value);
  }
  /// Asks the producer to stop; the result may still arrive. Never throws. Does nothing in a forked
  /// child.
  void cancel() noexcept {
    if (!state_ || !state_->origin.is_here()) return;
    detail::WorkState<T>& state = *state_;
    std::function<void()> hook;
    {
      const MutexLock lock(state.mutex);
      hook = std::exchange(state.on_cancel, nullptr);
    }
    if (hook) hook();
  }

 private:
  std::shared_ptr<detail::WorkState<T>> state_;
};

/// The producing end of a Work. A Promise that is destroyed without a result delivers Cancelled.
/// Copyable: the first set_* of all copies wins, later calls return false.
template <class T>
class Promise {
 public:
  Promise() : guard_(std::make_shared<Guard>()) {}

  /// May be called once.
  [[nodiscard]] Work<T> work() { return Work<T>(guard_->state); }
  template <class... V>
  bool set_value(V&&... v) {
    return guard_->state->set_value(std::forward<V>(v)...);
  }
  bool set_error(std::exception_ptr e) { return guard_->state->set_error(std::move(e)); }
  /// `hook` runs at most once, on the thread that cancels; it must neither block nor throw.
  void on_cancel(std::function<void()> hook) {
    detail::WorkState<T>& state = *guard_->state;
    const MutexLock lock(state.mutex);
    if (!state.done) state.on_cancel = std::move(hook);
  }

 private:
  struct Guard {
    std::shared_ptr<detail::WorkState<T>> state = std::make_shared<detail::WorkState<T>>();
    Guard() = default;
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() {
      if (!state->origin.is_here() || state.use_count() == 1) return;  // no Work: nobody asks
      state->set_error(detail::abandoned());
    }
  };
  std::shared_ptr<Guard> guard_;
};

}  // namespace meshstage
