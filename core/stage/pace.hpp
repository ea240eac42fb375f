#pragma once
#include <chrono>
#include <cstdint>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/stage/watermark.hpp>

namespace meshstage {

/// The largest piece, in bytes, that a copy asks a Pace for.
inline constexpr std::uint64_t kPaceBytes = std::uint64_t{2} << 20U;

/// Slows copying down, so that training keeps its memory bandwidth. Threads: any.
class MESHSTAGE_API Pace {
 public:
  virtual ~Pace() = default;
  /// Returns when `bytes` more may be copied, or soon after `progress` was failed.
  virtual void before(std::uint64_t bytes, Watermark& progress) = 0;
};

/// Lets at most `bytes_per_second` pass in any second, and one piece more. Several stagers may use
/// the same one.
class MESHSTAGE_API BandwidthCap final : public Pace {
 public:
  using TimePoint = Deadline::Clock::time_point;
  /// Throws InvalidArgument for 0.
  explicit BandwidthCap(std::uint64_t bytes_per_second);
  void before(std::uint64_t bytes, Watermark& progress) override;
  /// The arithmetic of before(). Returns the time at which `bytes`, asked for at `now`, may be
  /// copied, behind all bytes that were asked for before. before() waits until that time.
  TimePoint reserve(std::uint64_t bytes, TimePoint now);

 private:
  const double bytes_per_second_;
  Mutex mutex_;
  TimePoint free_at_ MESHSTAGE_GUARDED_BY(mutex_) = TimePoint::min();
};

}  // namespace meshstage
