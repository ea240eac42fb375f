#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/memory/pinning.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage::detail {

/// The lock on a slot's pages. PageLocks' mutex guards it. It ends before the mapping does.
struct SlotPages {
  std::optional<PinnedPages> pinned;
  std::uint64_t refused_bytes = 0;  ///< Locking this size was refused; other sizes are tried.
};

/// Page-locks slots for a device, from use() on. Threads: any; a mapping is not replaced while it
/// is being locked.
class PageLocks {
 public:
  void use(MemoryPinner& pinner, std::function<void(const std::string&)> warn);
  /// Locks all of `image`, unless it is locked already or was refused at this size. A refusal
  /// leaves it unlocked and is counted; only the first refusal gives a warning.
  void lock(SlotPages& pages, std::span<std::byte> image, const std::string& slot);
  /// Call it before the mapping ends.
  void unlock(SlotPages& pages) noexcept;
  /// True if the slot's pages are locked. The caller adds up the bytes of locked slots.
  [[nodiscard]] bool is_locked(const SlotPages& pages) const;
  [[nodiscard]] std::uint64_t refused() const;

 private:
  mutable Mutex mutex_;  // held while the device locks, so that others wait for it
  MemoryPinner* pinner_ MESHSTAGE_GUARDED_BY(mutex_) = nullptr;
  std::function<void(const std::string&)> warn_ MESHSTAGE_GUARDED_BY(mutex_);
  std::uint64_t refused_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
};

}  // namespace meshstage::detail
