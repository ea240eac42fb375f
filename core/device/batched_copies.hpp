#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/device/runtime.hpp>

namespace meshstage::detail {

/// Many copies on one stream, so issued that the front of the list is done while its end is still
/// being copied: small and odd-aligned ones by one kernel first, the others in batches of 32 to
/// 64 MiB in the order of the list, an event behind each. Threads: made by one; then any.
class BatchedCopies {
 public:
  BatchedCopies() = default;
  /// Issues all of them. Throws what DeviceStream throws; what was issued before that may still
  /// happen. Both ends of each copy must stay until last() is done.
  BatchedCopies(DeviceStream& stream, CopyDirection direction, std::span<const DeviceCopy> copies);

  /// When this is done, so are the first `bytes` of a copy.
  [[nodiscard]] DeviceEvent behind(std::size_t copy, std::uint64_t bytes) const;
  /// Behind all of them.
  [[nodiscard]] const DeviceEvent& last() const noexcept { return last_; }

 private:
  /// Copies up to here are done when the event is.
  struct Mark {
    std::size_t copy;
    std::uint64_t end;  // bytes of that copy
    DeviceEvent event;
  };
  void issue_small(DeviceStream& stream, CopyDirection direction,
                   std::span<const DeviceCopy> copies);
  void issue_large(DeviceStream& stream, CopyDirection direction,
                   std::span<const DeviceCopy> copies);

  std::vector<bool> small_;  // by copy
  DeviceEvent small_done_, last_;
  std::vector<Mark> marks_;  // ascending
};

}  // namespace meshstage::detail
