#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/os/huge_page.hpp>

namespace meshstage {

/// Host memory comes from a std::pmr::memory_resource. The resources here throw OutOfMemory, never
/// bad_alloc. The decorators below add behaviour; each refers to the next resource, which must
/// outlive it. Threads: any.
using MemoryResource = std::pmr::memory_resource;

/// Smallest alignment that host_memory() gives.
inline constexpr std::size_t kHostAlignment = 64;
/// Ordinary memory, aligned to kHostAlignment. Blocks of kHugePageBytes and more get a mapping of
/// their own, aligned to that size, with MADV_HUGEPAGE, because the first touch of fresh pages is
/// the real cost of a first copy: 5 GB/s against 2. Stateless; valid until the program ends.
[[nodiscard]] MESHSTAGE_API MemoryResource& host_memory();

/// Refuses an allocation that would bring the bytes in use above `cap_bytes`.
class MESHSTAGE_API CappedMemory final : public MemoryResource {
 public:
  /// `what` names the budget in the error: "staging".
  CappedMemory(MemoryResource& upstream, std::size_t cap_bytes, std::string what);
  [[nodiscard]] std::size_t in_use() const noexcept { return in_use_.load(); }
  [[nodiscard]] std::size_t cap() const noexcept { return cap_; }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
  [[nodiscard]] bool do_is_equal(const MemoryResource& other) const noexcept override;
  MemoryResource& upstream_;
  std::size_t cap_;
  std::string what_;
  std::atomic<std::size_t> in_use_{0};
};

/// Counts the allocations that pass through it.
class MESHSTAGE_API CountingMemory final : public MemoryResource {
 public:
  struct Counts {
    std::uint64_t bytes = 0;        ///< In use now.
    std::uint64_t peak_bytes = 0;   ///< The most that was in use at once.
    std::uint64_t blocks = 0;       ///< In use now.
    std::uint64_t allocations = 0;  ///< Ever.
  };
  explicit CountingMemory(MemoryResource& upstream);
  [[nodiscard]] Counts counts() const noexcept;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
  [[nodiscard]] bool do_is_equal(const MemoryResource& other) const noexcept override;
  MemoryResource& upstream_;
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> peak_{0};
  std::atomic<std::uint64_t> blocks_{0};
  std::atomic<std::uint64_t> allocations_{0};
};

}  // namespace meshstage
