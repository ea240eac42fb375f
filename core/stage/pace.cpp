#include <algorithm>
#include <cmath>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/pace.hpp>

namespace meshstage {

BandwidthCap::BandwidthCap(std::uint64_t bytes_per_second)
    : bytes_per_second_(static_cast<double>(bytes_per_second)) {
  if (bytes_per_second == 0) throw InvalidArgument("a bandwidth cap of 0 bytes per second");
}

void BandwidthCap::before(std::uint64_t bytes, Watermark& progress) {
  progress.wait_failed(Deadline::at(reserve(bytes, Deadline::Clock::now())));
}

BandwidthCap::TimePoint BandwidthCap::reserve(std::uint64_t bytes, TimePoint now) {
  const std::chrono::duration<double, TimePoint::duration::period> time(
      std::ceil(static_cast<double>(bytes) * TimePoint::duration::period::den / bytes_per_second_));
  const MutexLock lock(mutex_);
  const auto begin = std::max(now, free_at_);
  free_at_ = Deadline::at(begin).plus(time).time();
  return begin;
}

}  // namespace meshstage
