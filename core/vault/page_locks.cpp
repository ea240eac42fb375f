#include <meshstage/core/vault/page_locks_impl.hpp>

#include <meshstage/core/error/error.hpp>

#include <utility>

namespace meshstage::detail {

void PageLocks::use(MemoryPinner& pinner, std::function<void(const std::string&)> warn) {
  const MutexLock lock(mutex_);
  if (pinner_ != nullptr) return;  // any device's locks serve all of them
  pinner_ = &pinner;
  warn_ = std::move(warn);
}

void PageLocks::lock(SlotPages& pages, std::span<std::byte> image, const std::string& slot) {
  const MutexLock lock(mutex_);
  if (pinner_ == nullptr || pages.pinned || image.empty() || pages.refused_bytes == image.size()) {
    return;
  }
  try {
    pages.pinned.emplace(*pinner_, image);
  } catch (const Error& e) {
    pages.refused_bytes = image.size();
    if (refused_++ > 0 || !warn_) return;
    warn_("copies between devices and the vault are slower: the " + std::to_string(image.size()) +
          " bytes of " + slot + " cannot be page-locked: " + e.what());
  }
}

void PageLocks::unlock(SlotPages& pages) noexcept {
  const MutexLock lock(mutex_);
  pages.pinned.reset();
}

bool PageLocks::is_locked(const SlotPages& pages) const {
  const MutexLock lock(mutex_);
  return pages.pinned.has_value();
}

std::uint64_t PageLocks::refused() const {
  const MutexLock lock(mutex_);
  return refused_;
}

}  // namespace meshstage::detail
