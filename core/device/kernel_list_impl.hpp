#pragma once
#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>

#include <meshstage/core/device/runtime_impl.hpp>
#include <meshstage/core/memory/resource.hpp>

namespace meshstage::detail {

/// The memory of a kernel's list and results: page-locked host memory, and as much of the device's
/// as asked. Threads: one at a time; release() any.
class KernelList {
 public:
  KernelList(OpenDevice& on, std::size_t host_bytes, std::size_t device_bytes)
      : host_bytes_((host_bytes + kPage - 1) / kPage * kPage),
        device_bytes_(device_bytes),
        device_(allocate(on, device_bytes)),
        host_(static_cast<std::byte*>(host_memory().allocate(host_bytes_, kPage))) {
    try {
      pages_.emplace(on.pinner, host());
    } catch (...) {
      host_memory().deallocate(host_, host_bytes_, kPage);
      throw;
    }
  }
  KernelList(const KernelList&) = delete;
  KernelList& operator=(const KernelList&) = delete;
  ~KernelList() {
    pages_.reset();
    host_memory().deallocate(host_, host_bytes_, kPage);
  }

  [[nodiscard]] std::span<std::byte> host() const noexcept { return {host_, host_bytes_}; }
  [[nodiscard]] std::byte* device() const noexcept { return device_.get(); }
  [[nodiscard]] bool has_room(std::size_t host_bytes, std::size_t device_bytes) const noexcept {
    return host_bytes_ >= host_bytes && device_bytes_ >= device_bytes;
  }

  /// While results are lent, a reader has them and no other kernel may write them.
  void lend() noexcept { lent_.store(true, std::memory_order_relaxed); }
  void release() noexcept { lent_.store(false, std::memory_order_release); }
  [[nodiscard]] bool is_lent() const noexcept { return lent_.load(std::memory_order_acquire); }

 private:
  static constexpr std::size_t kPage = 4096;

  std::size_t host_bytes_, device_bytes_;
  std::shared_ptr<std::byte> device_;
  std::byte* host_;
  std::optional<PinnedPages> pages_;
  std::atomic<bool> lent_{false};
};

}  // namespace meshstage::detail
