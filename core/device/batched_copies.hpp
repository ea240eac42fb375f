#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/device/runtime.hpp>

namespace meshstage::detail {

/// Many copies on one stream, issued so that the front of the list is done while its end is still
/// being copied. First one kernel makes the small and odd-aligned copies, and within a device all.
/// The others follow in the order of the list, in batches of 32 to 64 MiB with an event behind
/// each. Threads: one constructs it; then any.
class BatchedCopies {
 public:
  BatchedCopies() = default;
  /// Issues all copies. Throws what DeviceStream throws; copies that were issued before may still
  /// happen. Both ends of each copy must stay until last() is done.
  BatchedCopies(DeviceStream& stream, CopyDirection direction, std::span<const DeviceCopy> copies);

  /// An event: when it is done, the first `bytes` of the copy with index `copy` are copied.
  [[nodiscard]] DeviceEvent behind(std::size_t copy, std::uint64_t bytes) const;
  /// The event behind all copies.
  [[nodiscard]] const DeviceEvent& last() const noexcept { return last_; }

 private:
  /// When the event is done, all copies up to this point are.
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
