#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/resource.hpp>

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <new>

namespace meshstage {

namespace {

[[noreturn]] void refuse(std::size_t bytes, const char* how) {
  throw OutOfMemory("the system has no " + std::to_string(bytes) + " bytes for a host block (" +
                    how + "); stage a smaller state or raise the memory limit");
}

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  std::size_t sum = 0;
  if (__builtin_add_overflow(bytes, unit - 1, &sum)) refuse(bytes, "the size wraps");
  return sum / unit * unit;
}

class HostMemory final : public MemoryResource {
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    alignment = std::max(alignment, kHostAlignment);
    if (is_mapped(bytes, alignment)) return map(bytes);
    void* const p =
        ::operator new(std::max<std::size_t>(bytes, 1), std::align_val_t(alignment), std::nothrow);
    if (p == nullptr) refuse(bytes, "operator new");
    return p;
  }
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
    alignment = std::max(alignment, kHostAlignment);
    if (is_mapped(bytes, alignment)) {
      ::munmap(p, round_up(bytes, kHugePageBytes));
    } else {
      ::operator delete(p, std::align_val_t(alignment));
    }
  }
  [[nodiscard]] bool do_is_equal(const MemoryResource& other) const noexcept override {
    return this == &other;
  }

  static bool is_mapped(std::size_t bytes, std::size_t alignment) {
    return bytes >= kHugePageBytes && alignment <= kHugePageBytes;
  }
  /// Maps one huge page more than needed and gives back what lies before and after the aligned
  /// block.
  static void* map(std::size_t bytes) {
    const std::size_t length = round_up(bytes, kHugePageBytes);
    const std::size_t mapped = round_up(length + 1, kHugePageBytes);
    void* const p =
        ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) refuse(bytes, "mmap");
    auto* const base = static_cast<std::byte*>(p);
    const std::size_t off = reinterpret_cast<std::uintptr_t>(base) % kHugePageBytes;
    const std::size_t head = off == 0 ? 0 : kHugePageBytes - off;
    if (head != 0) ::munmap(base, head);
    if (const std::size_t tail = mapped - head - length; tail != 0)
      ::munmap(base + head + length, tail);
    // Advice: a kernel without transparent huge pages says EINVAL and gives small ones.
    ::madvise(base + head, length, MADV_HUGEPAGE);
    return base + head;
  }
};

}  // namespace

MemoryResource& host_memory() {
  static HostMemory resource;  // no state
  return resource;
}

CappedMemory::CappedMemory(MemoryResource& upstream, std::size_t cap_bytes, std::string what)
    : upstream_(upstream), cap_(cap_bytes), what_(std::move(what)) {}

void* CappedMemory::do_allocate(std::size_t bytes, std::size_t alignment) {
  std::size_t used = in_use_.load();
  do {
    if (bytes > cap_ - std::min(cap_, used)) {
      throw OutOfMemory("the host memory budget of " + what_ + ": " + std::to_string(bytes) +
                        " bytes needed, " + std::to_string(cap_ - std::min(cap_, used)) +
                        " available of the cap of " + std::to_string(cap_) +
                        "; raise the cap or stage a smaller state");
    }
  } while (!in_use_.compare_exchange_weak(used, used + bytes));
  try {
    return upstream_.allocate(bytes, alignment);
  } catch (...) {
    in_use_ -= bytes;
    throw;
  }
}

void CappedMemory::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
  upstream_.deallocate(p, bytes, alignment);
  in_use_ -= bytes;
}

bool CappedMemory::do_is_equal(const MemoryResource& other) const noexcept {
  return this == &other;
}

CountingMemory::CountingMemory(MemoryResource& upstream) : upstream_(upstream) {}

void* CountingMemory::do_allocate(std::size_t bytes, std::size_t alignment) {
  void* const p = upstream_.allocate(bytes, alignment);
  const std::uint64_t now = bytes_ += bytes;
  std::uint64_t peak = peak_.load();
  while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
  }
  ++blocks_;
  ++allocations_;
  return p;
}

void CountingMemory::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
  upstream_.deallocate(p, bytes, alignment);
  bytes_ -= bytes;
  --blocks_;
}

bool CountingMemory::do_is_equal(const MemoryResource& other) const noexcept {
  return this == &other;
}

CountingMemory::Counts CountingMemory::counts() const noexcept {
  return {bytes_.load(), peak_.load(), blocks_.load(), allocations_.load()};
}

}  // namespace meshstage
