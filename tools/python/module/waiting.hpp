#pragma once
#include <nanobind/nanobind.h>

#include <chrono>
#include <optional>

#include <meshstage/core/async/deadline.hpp>

namespace meshstage::python {

/// The longest time for which a wait keeps Python from its signals.
inline constexpr std::chrono::milliseconds kSlice{100};

/// Seconds as Python gives them: none is never.
[[nodiscard]] inline Deadline deadline_of(std::optional<double> seconds) {
  if (!seconds) return Deadline::never();
  return Deadline::after(std::chrono::duration<double>(*seconds));
}

/// Calls `wait_until(slice)` without the GIL until it returns true or `deadline` has passed, and
/// lets Python's signal handlers run between the slices: what they raise ends the wait. Returns
/// whether `wait_until` did.
template <class F>
bool wait_in_slices(Deadline deadline, F&& wait_until) {
  for (;;) {
    const Deadline slice = Deadline::after(kSlice).earlier(deadline);
    bool done = false;
    {
      const nanobind::gil_scoped_release release;
      done = wait_until(slice);
    }
    if (done) return true;
    if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
    if (deadline.expired()) return false;
  }
}

}  // namespace meshstage::python
