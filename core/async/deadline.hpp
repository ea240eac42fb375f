#pragma once
#include <algorithm>
#include <chrono>

namespace meshstage {

/// A point in time by which something must be done. The public call makes one and passes it down by
/// value; no inner call has a timeout of its own. Uses the monotonic clock. No sum overflows: a
/// time beyond the clock's range becomes never(), a time before the range its first time.
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  /// `d` from now. A duration too large for the clock (milliseconds::max()) means never().
  template <class Rep, class Period>
  [[nodiscard]] static Deadline after(std::chrono::duration<Rep, Period> d) {
    return at(Clock::now()).plus(d);
  }
  [[nodiscard]] static constexpr Deadline never() { return Deadline(Clock::time_point::max()); }
  [[nodiscard]] static constexpr Deadline at(Clock::time_point t) { return Deadline(t); }
  /// `d` in the clock's unit; a duration that does not fit becomes the longest one of its sign. Use
  /// it before a user's duration is added, doubled or compared.
  template <class Rep, class Period>
  [[nodiscard]] static constexpr Clock::duration length(std::chrono::duration<Rep, Period> d) {
    using Seconds = std::chrono::duration<double>;
    if (Seconds(d) >= Seconds(Clock::duration::max())) return Clock::duration::max();
    if (Seconds(d) <= Seconds(Clock::duration::min())) return Clock::duration::min();
    return std::chrono::duration_cast<Clock::duration>(d);
  }

  [[nodiscard]] constexpr Clock::time_point time() const { return time_; }
  [[nodiscard]] constexpr bool is_never() const { return time_ == Clock::time_point::max(); }
  [[nodiscard]] bool expired() const { return !is_never() && Clock::now() >= time_; }
  /// The time left, zero once expired. For never() about a year, so that it fits every system call.
  [[nodiscard]] std::chrono::milliseconds remaining() const {
    using std::chrono::milliseconds;
    constexpr milliseconds kYear{std::chrono::hours(24 * 365)};
    const auto now = Clock::now();
    if (time_ <= now) return milliseconds::zero();
    // now is not negative, so the difference fits.
    return std::min<milliseconds>(std::chrono::ceil<milliseconds>(time_ - now), kYear);
  }
  [[nodiscard]] Deadline earlier(Deadline other) const {
    return time_ < other.time_ ? *this : other;
  }
  /// Later by `d`, or earlier where `d` is negative. never() stays never().
  template <class Rep, class Period>
  [[nodiscard]] constexpr Deadline plus(std::chrono::duration<Rep, Period> d) const {
    constexpr auto kFirst = Clock::time_point::min();
    constexpr auto kLast = Clock::time_point::max();
    const Clock::duration step = length(d);
    if (is_never()) return *this;
    if (step > Clock::duration::zero() && time_ > kLast - step) return never();
    if (step < Clock::duration::zero() && time_ < kFirst - step) return Deadline(kFirst);
    return Deadline(time_ + step);
  }

 private:
  explicit constexpr Deadline(Clock::time_point t) : time_(t) {}
  Clock::time_point time_;
};

}  // namespace meshstage
