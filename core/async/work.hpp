#pragma once
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace detail {

/// Shared between one Promise and one Work. All members are guarded by `mutex`.
template <class T>
struct WorkState {
  using Stored = std::conditional_t<std::is_void_v<T>, std::monostate, T>;
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<Stored> value;
  std::exception_ptr error;
  bool done = false;
  std::function<void()> on_cancel;

  template <class F>
  bool finish(F&& store) {
    {
      const std::lock_guard lock(mutex);
      if (done) return false;
      store();
      done = true;
      on_cancel = nullptr;
      changed.notify_all();
    }
    return true;
  }
};

}  // namespace detail

/// The result of something that happens on another thread: the library's one future type.
/// Move-only. An error is delivered once, by get() or wait(); afterwards the Work is empty.
/// A destroyed Work that was not done is cancelled, and its producer's threads are the producer's
/// to join: a Work owns no thread. There are no continuations.
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
    const std::lock_guard lock(state_->mutex);
    return state_->done;
  }
  /// Waits for the result without taking it. Returns at once on an empty Work.
  /// Throws Timeout at the deadline, and the producer's error if there is one (then the Work is
  /// empty).
  void wait(Deadline deadline = Deadline::never()) {
    if (!state_) return;
    std::unique_lock lock(state_->mutex);
    wait_done(lock, deadline);
    if (state_->error) {
      auto error = std::exchange(state_->error, nullptr);
      lock.unlock();
      state_.reset();
      std::rethrow_exception(error);
    }
  }
  /// Waits, then takes the value; the Work is empty afterwards.
  T get(Deadline deadline = Deadline::never()) {
    if (!state_) throw InvalidState("get() on an empty Work");
    wait(deadline);
    auto state = std::exchange(state_, nullptr);
    if constexpr (!std::is_void_v<T>) return std::move(*state->value);
  }
  /// Asks the producer to stop. Never throws; the result may still arrive.
  void cancel() noexcept {
    if (!state_) return;
    std::function<void()> hook;
    {
      const std::lock_guard lock(state_->mutex);
      hook = std::exchange(state_->on_cancel, nullptr);
    }
    if (hook) hook();
  }

 private:
  void wait_done(std::unique_lock<std::mutex>& lock, Deadline deadline) {
    const auto done = [this] { return state_->done; };
    if (deadline.is_never()) {
      state_->changed.wait(lock, done);
    } else if (!state_->changed.wait_until(lock, deadline.time(), done)) {
      throw Timeout("the result was not there by the deadline");
    }
  }
  std::shared_ptr<detail::WorkState<T>> state_;
};

/// The producing end of a Work. Destroyed without a result, it delivers Cancelled.
/// Copyable: the first set_* wins, later ones return false.
template <class T>
class Promise {
 public:
  Promise() : guard_(std::make_shared<Guard>()) {}

  /// At most one Work is made of a Promise.
  [[nodiscard]] Work<T> work() { return Work<T>(guard_->state); }
  template <class... V>
  bool set_value(V&&... v) {
    auto& s = *guard_->state;
    return s.finish([&] { s.value.emplace(std::forward<V>(v)...); });
  }
  bool set_error(std::exception_ptr e) {
    auto& s = *guard_->state;
    return s.finish([&] { s.error = std::move(e); });
  }
  /// Runs at most once, on the thread that cancels; must not block nor throw.
  void on_cancel(std::function<void()> hook) {
    const std::lock_guard lock(guard_->state->mutex);
    if (!guard_->state->done) guard_->state->on_cancel = std::move(hook);
  }

 private:
  struct Guard {
    std::shared_ptr<detail::WorkState<T>> state = std::make_shared<detail::WorkState<T>>();
    Guard() = default;
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() {
      state->finish([this] {
        state->error =
            std::make_exception_ptr(Cancelled("the producer went away without a result"));
      });
    }
  };
  std::shared_ptr<Guard> guard_;
};

}  // namespace meshstage
