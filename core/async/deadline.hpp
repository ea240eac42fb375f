#pragma once
#include <algorithm>
#include <chrono>

namespace meshstage {

/// A point in time by which something must be done. Made once, at the public call, and passed
/// down by value; no inner call has a timeout of its own. Uses the monotonic clock.
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  /// From now. A duration too large for the clock means never().
  template <class Rep, class Period>
  [[nodiscard]] static Deadline after(std::chrono::duration<Rep, Period> d) {
    const auto now = Clock::now();
    if (std::chrono::duration<double>(d) >=
        std::chrono::duration<double>(Clock::time_point::max() - now)) {
      return never();
    }
    return Deadline(now + std::chrono::duration_cast<Clock::duration>(d));
  }
  [[nodiscard]] static constexpr Deadline never() { return Deadline(Clock::time_point::max()); }
  [[nodiscard]] static constexpr Deadline at(Clock::time_point t) { return Deadline(t); }

  [[nodiscard]] constexpr Clock::time_point time() const { return time_; }
  [[nodiscard]] constexpr bool is_never() const { return time_ == Clock::time_point::max(); }
  [[nodiscard]] bool expired() const { return !is_never() && Clock::now() >= time_; }
  /// Zero once expired. For never() about a year, so that it fits every system call.
  [[nodiscard]] std::chrono::milliseconds remaining() const {
    using std::chrono::milliseconds;
    constexpr milliseconds kYear{std::chrono::hours(24 * 365)};
    if (is_never()) return kYear;
    const auto left = std::chrono::ceil<milliseconds>(time_ - Clock::now());
    return std::clamp(left, milliseconds::zero(), kYear);
  }
  [[nodiscard]] Deadline earlier(Deadline other) const {
    return time_ < other.time_ ? *this : other;
  }

 private:
  explicit constexpr Deadline(Clock::time_point t) : time_(t) {}
  Clock::time_point time_;
};

}  // namespace meshstage
