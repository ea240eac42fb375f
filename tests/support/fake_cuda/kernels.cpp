#include "tests/support/fake_cuda/kernels.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include <meshstage/core/device/backend.hpp>
#include <meshstage/core/device/cuda/kernels.hpp>

namespace meshstage::fake_cuda {
namespace {

std::string gather(const Memory& memory, std::span<const std::byte> bytes,
                   const std::function<std::uint64_t()>& random) {
  using device_backend::GatherItem;
  cuda::GatherArguments arguments{};
  std::memcpy(&arguments, bytes.data(), sizeof(arguments));
  if (arguments.count == 0) return {};
  std::vector<GatherItem> items(arguments.count);
  const auto* const list =
      memory.reach_from_kernel(arguments.items, items.size() * sizeof(GatherItem));
  if (list == nullptr) return "the gather kernel's items are not within its reach";
  std::memcpy(items.data(), list, items.size() * sizeof(GatherItem));
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random() % i]);
  for (const auto& item : items) {
    if (item.bytes > device_backend::kGatherItemBytes)
      return "an item of " + std::to_string(item.bytes) + " bytes for the gather kernel";
    auto* const target = memory.reach_from_kernel(item.target, item.bytes);
    const auto* const source = memory.reach_from_kernel(item.source, item.bytes);
    if (target == nullptr) return "the gather kernel writes where it may not";
    if (source == nullptr) return "the gather kernel reads where it may not";
    std::memcpy(target, source, item.bytes);
  }
  return {};
}

}  // namespace

const Kernel* find_kernel(const char* name) {
  static const std::array<Kernel, 1> kernels{
      Kernel{cuda::kGatherName, sizeof(cuda::GatherArguments), gather}};
  const auto found = std::find_if(kernels.begin(), kernels.end(),
                                  [&](const Kernel& one) { return one.name == name; });
  return found == kernels.end() ? nullptr : &*found;
}

}  // namespace meshstage::fake_cuda
