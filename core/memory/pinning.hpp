#pragma once
#include <cstddef>
#include <span>
#include <utility>

#include <meshstage/core/async/origin.hpp>

namespace meshstage {

/// Page-locks host memory, so that a device can copy to and from it by itself.
/// DeviceRuntime::pinner() (core/device) implements it by cudaHostRegister; without a device there
/// is none. Threads: any.
class MemoryPinner {
 public:
  virtual ~MemoryPinner() = default;
  /// Locks `pages`: aligned whole pages, none of them locked already. Throws an Error if the system
  /// refuses.
  virtual void pin(std::span<std::byte> pages) = 0;
  /// Unlocks `pages`, a span that was given to pin().
  virtual void unpin(std::span<std::byte> pages) noexcept = 0;
};

/// Pages that stay locked while this lives. Move-only; the pinner must outlive it. A forked child's
/// copy unlocks nothing: the lock is the parent's.
class PinnedPages {
 public:
  /// Throws what pin() throws.
  PinnedPages(MemoryPinner& pinner, std::span<std::byte> pages) : pinner_(&pinner), pages_(pages) {
    pinner.pin(pages);
  }
  PinnedPages(PinnedPages&& other) noexcept
      : pinner_(std::exchange(other.pinner_, nullptr)), pages_(other.pages_) {}
  PinnedPages& operator=(PinnedPages&& other) noexcept {
    std::swap(pinner_, other.pinner_);
    std::swap(pages_, other.pages_);
    return *this;
  }
  ~PinnedPages() {
    if (pinner_ != nullptr && origin_.is_here()) pinner_->unpin(pages_);
  }
  [[nodiscard]] std::span<std::byte> pages() const noexcept { return pages_; }

 private:
  MemoryPinner* pinner_;
  std::span<std::byte> pages_;
  ProcessOrigin origin_;
};

}  // namespace meshstage
