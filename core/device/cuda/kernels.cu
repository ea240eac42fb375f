// Device code alone: compiled to a fatbin, loaded by the driver, found by name.
#include <cstddef>

#include <meshstage/core/device/backend.hpp>
#include <meshstage/core/device/cuda/kernels.hpp>

namespace {

using meshstage::cuda::GatherArguments;
using meshstage::device_backend::GatherItem;

template <class T>
__device__ void copy_as(unsigned char* target, const unsigned char* source, std::uint64_t bytes) {
  auto* const to = reinterpret_cast<T*>(target);
  const auto* const from = reinterpret_cast<const T*>(source);
  const std::uint64_t count = bytes / sizeof(T);
  for (std::uint64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

// As wide as both addresses and what is left allow; heads and tails go byte by byte.
template <class T>
__device__ bool copy_wide(unsigned char* target, const unsigned char* source,
                          std::uint64_t bytes) {
  const auto to = reinterpret_cast<std::uint64_t>(target);
  const auto from = reinterpret_cast<std::uint64_t>(source);
  if ((to - from) % sizeof(T) != 0) return false;
  std::uint64_t head = (sizeof(T) - to % sizeof(T)) % sizeof(T);
  if (head > bytes) head = bytes;
  const std::uint64_t middle = (bytes - head) / sizeof(T) * sizeof(T);
  copy_as<unsigned char>(target, source, head);
  copy_as<T>(target + head, source + head, middle);
  copy_as<unsigned char>(target + head + middle, source + head + middle, bytes - head - middle);
  return true;
}

}  // namespace

// A block copies whole items; items do not overlap one another's targets.
extern "C" __global__ void __launch_bounds__(meshstage::cuda::kGatherThreads)
    meshstage_gather(GatherArguments arguments) {
  const auto* const items = reinterpret_cast<const GatherItem*>(arguments.items);
  for (std::uint32_t i = blockIdx.x; i < arguments.count; i += gridDim.x) {
    const GatherItem item = items[i];
    auto* const target = reinterpret_cast<unsigned char*>(item.target);
    const auto* const source = reinterpret_cast<const unsigned char*>(item.source);
    if (copy_wide<uint4>(target, source, item.bytes)) continue;
    if (copy_wide<unsigned int>(target, source, item.bytes)) continue;
    copy_as<unsigned char>(target, source, item.bytes);
  }
}
