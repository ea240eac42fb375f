#pragma once
#include <chrono>
#include <cstdint>
#include <mutex>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/stage/watermark.hpp>

namespace meshstage {

/// A copy asks for pieces of at most so many bytes.
inline constexpr std::uint64_t kPaceBytes = std::uint64_t{2} << 20U;

/// Holds copying back, so that it leaves memory bandwidth to the training. Threads: any.
class MESHSTAGE_API Pace {
 public:
  virtual ~Pace() = default;
  /// Returns when `bytes` more may be copied, or soon after `progress` was failed.
  virtual void before(std::uint64_t bytes, Watermark& progress) = 0;
};

/// At most so many bytes in any second, and one piece more. Several stagers may share one.
class MESHSTAGE_API BandwidthCap final : public Pace {
 public:
  using TimePoint = Deadline::Clock::time_point;
  /// Throws InvalidArgument for 0.
  explicit BandwidthCap(std::uint64_t bytes_per_second);
  void before(std::uint64_t bytes, Watermark& progress) override;
  /// The arithmetic of before(), which waits until the time that this returns: when `bytes` may be
  /// copied that are asked for at `now`, behind all that was asked for before.
  TimePoint reserve(std::uint64_t bytes, TimePoint now);

 private:
  std::mutex mutex_;
  double bytes_per_second_;
  TimePoint free_at_ = TimePoint::min();  // guarded by mutex_
};

}  // namespace meshstage
