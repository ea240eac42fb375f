#pragma once
#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace meshstage::fake_cuda {

/// What freed memory of a device holds.
inline constexpr unsigned char kPoison = 0xDB;

/// A run of a device's memory: its address faults under the host's hand, and an alias of the same
/// pages is how the fake reaches it.
struct Allocation {
  std::byte* address = nullptr;
  std::byte* alias = nullptr;
  std::size_t bytes = 0;
  int device = 0;
  bool live = true;
};

/// Host memory that a device may reach by itself. Kernels know it by another address, as on devices
/// that do not share the host's page tables.
struct Registration {
  std::byte* begin = nullptr;
  std::size_t bytes = 0;
  std::byte* device_address = nullptr;  // reserved, never mapped
};

/// Where an address leads. The fake is one lock; none of this has its own.
class Memory {
 public:
  CUresult allocate(int device, std::size_t bytes, CUdeviceptr* address);
  /// The memory is poisoned at once, as if a caching allocator had given it to somebody else.
  CUresult free(CUdeviceptr address);
  CUresult register_host(void* begin, std::size_t bytes);
  CUresult unregister_host(void* begin);

  /// The allocation that an address is in, freed ones too; null if none.
  [[nodiscard]] const Allocation* allocation(const void* address) const;
  [[nodiscard]] const Registration* registration(const void* host) const;
  [[nodiscard]] const Registration* registration_by_device_address(const void* address) const;

  enum class Kind { kDevice, kPinned, kPageable, kMixed };
  /// What a run of bytes is; kMixed where it spans edges of any kind.
  [[nodiscard]] Kind kind(const void* address, std::size_t bytes) const;
  /// How the fake reaches a run that a copy names: device memory or any host memory.
  [[nodiscard]] std::byte* reach(const void* address) const;
  /// How the fake reaches a run that a kernel names; null where a real one would fault.
  [[nodiscard]] std::byte* reach_from_kernel(std::uint64_t address, std::size_t bytes) const;

  [[nodiscard]] std::size_t device_bytes() const;
  [[nodiscard]] std::size_t registered_bytes() const;

 private:
  std::map<const std::byte*, Allocation> allocations_;      // by address; never erased
  std::map<const std::byte*, Registration> registrations_;  // by begin
};

}  // namespace meshstage::fake_cuda
