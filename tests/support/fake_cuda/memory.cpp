#include "tests/support/fake_cuda/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace meshstage::fake_cuda {
namespace {

constexpr std::size_t kPage = 4096;

std::size_t round_up(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

std::byte* reserve(std::size_t bytes) {
  void* const p =
      ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<std::byte*>(p);
}

// The entry of a map by begin whose run an address is in.
template <class Map>
const typename Map::mapped_type* find(const Map& map, const void* address) {
  const auto* const at = static_cast<const std::byte*>(address);
  auto next = map.upper_bound(at);
  if (next == map.begin()) return nullptr;
  --next;
  return at < next->first + next->second.bytes ? &next->second : nullptr;
}

}  // namespace

CUresult Memory::allocate(int device, std::size_t bytes, CUdeviceptr* address) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  const auto length = round_up(bytes);
  const int file = ::memfd_create("fake device memory", MFD_CLOEXEC);
  if (file < 0 || ::ftruncate(file, static_cast<off_t>(length)) != 0)
    return CUDA_ERROR_OUT_OF_MEMORY;
  void* const alias = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  std::byte* const shown = reserve(length);
  if (alias == MAP_FAILED || shown == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  allocations_[shown] = {shown, static_cast<std::byte*>(alias), bytes, device, true};
  std::memset(alias, 0xA5, bytes);
  *address = reinterpret_cast<CUdeviceptr>(shown);
  return CUDA_SUCCESS;
}

CUresult Memory::free(CUdeviceptr address) {
  const auto it = allocations_.find(reinterpret_cast<const std::byte*>(address));
  if (it == allocations_.end() || !it->second.live) return CUDA_ERROR_INVALID_VALUE;
  it->second.live = false;
  std::memset(it->second.alias, kPoison, it->second.bytes);
  return CUDA_SUCCESS;
}

CUresult Memory::register_host(void* begin, std::size_t bytes) {
  auto* const first = static_cast<std::byte*>(begin);
  if (bytes == 0 || reinterpret_cast<std::uintptr_t>(first) % kPage != 0 || bytes % kPage != 0)
    return CUDA_ERROR_INVALID_VALUE;
  const auto next = registrations_.lower_bound(first);
  if (find(registrations_, first) != nullptr ||
      (next != registrations_.end() && next->first < first + bytes)) {
    return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  }
  // A page that cannot be written cannot be locked for writing; mincore() fails for holes.
  std::vector<unsigned char> resident(bytes / kPage);
  if (::mincore(begin, bytes, resident.data()) != 0) return CUDA_ERROR_INVALID_VALUE;
  std::byte* const shown = reserve(bytes);
  if (shown == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  registrations_[first] = {first, bytes, shown};
  return CUDA_SUCCESS;
}

CUresult Memory::unregister_host(void* begin) {
  const auto it = registrations_.find(static_cast<const std::byte*>(begin));
  if (it == registrations_.end()) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  ::munmap(it->second.device_address, it->second.bytes);
  registrations_.erase(it);
  return CUDA_SUCCESS;
}

const Allocation* Memory::allocation(const void* address) const {
  return find(allocations_, address);
}

const Registration* Memory::registration(const void* host) const {
  return find(registrations_, host);
}

const Registration* Memory::registration_by_device_address(const void* address) const {
  const auto* const at = static_cast<const std::byte*>(address);
  for (const auto& [begin, one] : registrations_) {
    if (at >= one.device_address && at < one.device_address + one.bytes) return &one;
  }
  return nullptr;
}

Memory::Kind Memory::kind(const void* address, std::size_t bytes) const {
  const auto* const at = static_cast<const std::byte*>(address);
  if (const auto* found = allocation(at)) {
    return at + bytes <= found->address + found->bytes ? Kind::kDevice : Kind::kMixed;
  }
  if (const auto* found = registration(at))
    return at + bytes <= found->begin + found->bytes ? Kind::kPinned : Kind::kMixed;
  const auto next = registrations_.lower_bound(at);
  return next != registrations_.end() && next->first < at + bytes ? Kind::kMixed : Kind::kPageable;
}

std::byte* Memory::reach(const void* address) const {
  const auto* const at = static_cast<const std::byte*>(address);
  if (const auto* found = allocation(at)) return found->alias + (at - found->address);
  return const_cast<std::byte*>(at);
}

std::byte* Memory::reach_from_kernel(std::uint64_t address, std::size_t bytes) const {
  const auto* const at = reinterpret_cast<const std::byte*>(address);
  if (const auto* found = allocation(at)) {
    if (!found->live || at + bytes > found->address + found->bytes) return nullptr;
    return found->alias + (at - found->address);
  }
  if (const auto* found = registration_by_device_address(at)) {
    if (at + bytes > found->device_address + found->bytes) return nullptr;
    return found->begin + (at - found->device_address);
  }
  return nullptr;
}

std::size_t Memory::device_bytes() const {
  std::size_t sum = 0;
  for (const auto& [address, one] : allocations_) sum += one.live ? one.bytes : 0;
  return sum;
}

std::size_t Memory::registered_bytes() const {
  std::size_t sum = 0;
  for (const auto& [begin, one] : registrations_) sum += one.bytes;
  return sum;
}

}  // namespace meshstage::fake_cuda
