#pragma once
#include <cstddef>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/memory/resource.hpp>

#include "tests/support/cuda.hpp"

namespace meshstage::test {

/// Whole pages of host memory, page-locked unless asked otherwise.
class HostPages {
 public:
  explicit HostPages(std::size_t bytes, bool pinned = true)
      : bytes_((bytes + 4095) / 4096 * 4096),
        begin_(static_cast<std::byte*>(host_memory().allocate(bytes_, 4096)), Free{bytes_}) {
    if (pinned) pages_.emplace(DeviceRuntime::of(DeviceType::kCuda).pinner(Cuda::kDevice), all());
  }
  [[nodiscard]] std::span<std::byte> all() const { return {begin_.get(), bytes_}; }
  [[nodiscard]] std::byte* data() const { return begin_.get(); }

 private:
  struct Free {
    std::size_t bytes;
    void operator()(std::byte* begin) const { host_memory().deallocate(begin, bytes, 4096); }
  };
  std::size_t bytes_;
  std::unique_ptr<std::byte, Free> begin_;  // freed where page-locking throws, too
  std::optional<PinnedPages> pages_;        // goes first
};

inline std::vector<std::byte> counting(std::size_t bytes, unsigned first = 0) {
  std::vector<std::byte> result(bytes);
  for (std::size_t i = 0; i < bytes; ++i) result[i] = static_cast<std::byte>((first + i) % 251);
  return result;
}

}  // namespace meshstage::test
