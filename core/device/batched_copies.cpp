#include <meshstage/core/device/batched_copies.hpp>

#include <algorithm>
#include <utility>

namespace meshstage::detail {
namespace {

// A copy engine is busy with a run of this size for longer than issuing it takes; a kernel copies
// smaller ones faster.
constexpr std::uint64_t kSmall = std::uint64_t{256} << 10U;
// An address that is no multiple of this slows a copy engine down.
constexpr std::uintptr_t kEngineAlignment = 16;
constexpr std::uint64_t kBatchBytes = std::uint64_t{32} << 20U;
constexpr std::uint64_t kLargestBatch = std::uint64_t{64} << 20U;

bool is_small(const DeviceCopy& copy) {
  const auto odd = [](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % kEngineAlignment != 0;
  };
  return copy.bytes < kSmall || odd(copy.source) || odd(copy.target);
}

}  // namespace

BatchedCopies::BatchedCopies(DeviceStream& stream, CopyDirection direction,
                             std::span<const DeviceCopy> copies) {
  small_.reserve(copies.size());
  // Inside a device a kernel is as fast as its engine, and is issued at once.
  const bool within = direction == CopyDirection::kWithinDevice;
  for (const auto& copy : copies) small_.push_back(within || is_small(copy));
  issue_small(stream, direction, copies);
  issue_large(stream, direction, copies);
}

void BatchedCopies::issue_small(DeviceStream& stream, CopyDirection direction,
                                std::span<const DeviceCopy> copies) {
  std::vector<DeviceCopy> list;
  for (std::size_t i = 0; i < copies.size(); ++i) {
    if (small_[i] && copies[i].bytes > 0) list.push_back(copies[i]);
  }
  if (list.empty()) return;
  stream.gather(direction, list);
  small_done_ = last_ = stream.record();
}

void BatchedCopies::issue_large(DeviceStream& stream, CopyDirection direction,
                                std::span<const DeviceCopy> copies) {
  std::vector<DeviceCopy> batch;
  std::uint64_t in_batch = 0;
  const auto flush = [&](std::size_t copy, std::uint64_t end) {
    stream.copy(direction, batch);
    last_ = stream.record();
    marks_.push_back({copy, end, last_});
    batch.clear();
    in_batch = 0;
  };
  std::size_t latest = 0;
  for (std::size_t i = 0; i < copies.size(); ++i) {
    if (small_[i]) continue;
    const auto& [target, source, bytes] = copies[i];
    for (std::uint64_t at = 0; at < bytes;) {
      const auto n = std::min(bytes - at, kLargestBatch - in_batch);
      batch.push_back(
          {static_cast<std::byte*>(target) + at, static_cast<const std::byte*>(source) + at, n});
      in_batch += n;
      at += n;
      if (in_batch >= kBatchBytes) flush(i, at);
    }
    latest = i;
  }
  if (!batch.empty()) flush(latest, copies[latest].bytes);
}

DeviceEvent BatchedCopies::behind(std::size_t copy, std::uint64_t bytes) const {
  if (bytes == 0) return {};
  if (small_[copy]) return small_done_;
  const auto mark =
      std::lower_bound(marks_.begin(), marks_.end(), std::pair{copy, bytes},
                       [](const Mark& a, const auto& b) { return std::pair{a.copy, a.end} < b; });
  return mark->event;
}

}  // namespace meshstage::detail
