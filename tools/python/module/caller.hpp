#pragma once
#include <nanobind/nanobind.h>

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include <meshstage/core/async/work.hpp>
#include <meshstage/core/async/worker.hpp>

#include "waiting.hpp"

namespace meshstage::python {

/// One slice of a wait: whether the work is done. Throws the work's own error, a Timeout of its own
/// included.
template <class T>
bool wait_slice(Work<T>& work, Deadline slice) {
  try {
    work.wait(slice);
    return true;
  } catch (const Timeout&) {
    if (!work.valid()) throw;  // delivered its error
    return false;
  }
}

/// Makes the calls of one object on one thread of C++, so that Python's thread waits for them in
/// slices: a signal ends the wait, not the call. Calls never touch Python. Needs the GIL.
class Caller {
 public:
  Caller() : worker_("mesh-python") {}

  /// What `f` returns or throws. Behind a call that a signal made Python leave.
  template <class F>
  auto call(F f) {
    using R = std::invoke_result_t<F&>;
    Promise<R> promise;
    Work<R> work = promise.work();
    ++*posted_;
    worker_.post([f = std::move(f), promise, posted = posted_]() mutable {
      // Told outside the catch, which holds the exception.
      std::exception_ptr error;
      std::optional<std::conditional_t<std::is_void_v<R>, std::monostate, R>> result;
      try {
        if constexpr (std::is_void_v<R>) {
          f();
        } else {
          result.emplace(f());
        }
      } catch (...) {
        error = std::current_exception();
      }
      --*posted;
      if (error) {
        promise.set_error(std::move(error));
      } else if constexpr (std::is_void_v<R>) {
        promise.set_value();
      } else {
        promise.set_value(std::move(*result));
      }
    });
    wait_in_slices(Deadline::never(), [&work](Deadline slice) { return wait_slice(work, slice); });
    return work.get();
  }

  /// A call that a signal made Python leave still runs.
  [[nodiscard]] bool busy() const { return posted_->load() > 0; }

 private:
  std::shared_ptr<std::atomic<int>> posted_ = std::make_shared<std::atomic<int>>(0);
  Worker worker_;
};

/// Ends an idle caller's thread. Leaves a busy one alone: what it does goes on until the process
/// ends.
struct EndIdle {
  void operator()(Caller* caller) const {
    if (!caller->busy()) delete caller;
  }
};

}  // namespace meshstage::python
