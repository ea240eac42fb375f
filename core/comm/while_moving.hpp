#pragma once
#include <chrono>
#include <cstdint>

#include <meshstage/core/async/deadline.hpp>

namespace meshstage::detail {

/// Transfer::wait_while_moving() for a backend that sees bytes move. `done_by(deadline)` waits, and
/// is false at the deadline; `moved()` is a count that rises with the bytes. False if it has not
/// risen for `silence`; where it never rises, false at `quiet`. Throws what the two throw.
template <class DoneBy, class Moved>
[[nodiscard]] bool done_while_moving(std::chrono::milliseconds silence, DoneBy&& done_by,
                                     Moved&& moved, Deadline quiet) {
  // Looked at a few times in each silence, so that it is not taken for much longer than it is.
  constexpr int kLooks = 4;
  std::uint64_t seen = moved();
  while (!done_by(quiet.earlier(Deadline::after(silence / kLooks)))) {
    const std::uint64_t now = moved();
    if (now != seen) {
      quiet = Deadline::after(silence);
    } else if (quiet.expired()) {
      return false;
    }
    seen = now;
  }
  return true;
}
/// The same, of a silence that begins now.
template <class DoneBy, class Moved>
[[nodiscard]] bool done_while_moving(std::chrono::milliseconds silence, DoneBy&& done_by,
                                     Moved&& moved) {
  return done_while_moving(silence, done_by, moved, Deadline::after(silence));
}

}  // namespace meshstage::detail
