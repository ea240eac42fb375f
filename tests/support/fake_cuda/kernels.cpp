#include "tests/support/fake_cuda/kernels.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include <meshstage/core/device/backend.hpp>
#include <meshstage/core/device/cuda/kernels.hpp>
#include <meshstage/core/device/xxh3.hpp>

#include "tests/support/fake_cuda/state.hpp"

namespace meshstage::fake_cuda {
namespace {

std::vector<std::size_t> any_order(std::size_t count,
                                   const std::function<std::uint64_t()>& random) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

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
  for (const auto i : any_order(items.size(), random)) {
    const auto& item = items[i];
    if (item.bytes > device_backend::kGatherItemBytes)
      return "an item of " + std::to_string(item.bytes) + " bytes for the gather kernel";
    auto* const target = memory.reach_from_kernel(item.target, item.bytes);
    const auto* const source = memory.reach_from_kernel(item.source, item.bytes);
    if (target == nullptr) return "the gather kernel writes where it may not";
    if (source == nullptr) return "the gather kernel reads where it may not";
    const auto on_device = [&](std::uint64_t address) {
      return memory.allocation(reinterpret_cast<const void*>(address)) != nullptr;
    };
    carry(target, source, item.bytes, on_device(item.source) && !on_device(item.target));
  }
  return {};
}

// What a block holds as the kernel sees it; or which rule its runs break.
std::string assemble(const Memory& memory, std::span<const device_backend::DigestRun> runs,
                     std::span<std::byte> block) {
  std::uint64_t end = 0;
  for (const auto& run : runs) {
    if (run.offset % device_backend::kDigestAlignment != 0 ||
        run.source % device_backend::kDigestAlignment != 0) {
      return "a run that is not aligned for the digest kernel";
    }
    if (run.bytes == 0 || run.offset < end || run.offset + run.bytes > block.size())
      return "a run for the digest kernel that is empty, out of order or beyond its block";
    end = run.offset + run.bytes;
    const auto* const source = memory.reach_from_kernel(run.source, run.bytes);
    if (source == nullptr) return "the digest kernel reads where it may not";
    std::memcpy(block.data() + run.offset, source, run.bytes);
  }
  return {};
}

// As the kernel does it: the sums of groups in any order, then the chain over them.
device_backend::DigestResult digest_of(std::span<const std::byte> block,
                                       const std::function<std::uint64_t()>& random) {
  namespace xxh3 = detail::xxh3;
  const auto add = [&](xxh3::Lanes& sums, std::size_t at, std::size_t secret) {
    for (std::size_t i = 0; i < xxh3::kLanes; ++i) {
      xxh3::Word word = 0;
      std::memcpy(&word, block.data() + at + 8 * i, sizeof(word));
      sums[i] += xxh3::product(word, xxh3::secret_word(xxh3::kSecret, secret + 8 * i));
      sums[i ^ 1] += word;
    }
  };
  const auto stripes = (block.size() - 1) / xxh3::kStripe;
  std::vector<xxh3::Lanes> sums(stripes / xxh3::kGroup + 1);
  for (const auto group : any_order(sums.size(), random)) {
    const auto first = group * xxh3::kGroup;
    const auto count = std::min(xxh3::kGroup, stripes - first);
    const auto begin = random();
    for (std::size_t n = 0; n < count; ++n) {
      const auto i = (begin % count + n) % count;
      add(sums[group], (first + i) * xxh3::kStripe, i * 8);
    }
  }
  auto lanes = xxh3::kBegin;
  for (std::size_t group = 0; group < sums.size(); ++group) {
    for (std::size_t i = 0; i < xxh3::kLanes; ++i) {
      lanes[i] += sums[group][i];
      if (group + 1 == sums.size()) continue;
      const auto key = xxh3::secret_word(xxh3::kSecret, xxh3::kScrambleSecret + 8 * i);
      lanes[i] = xxh3::scramble(lanes[i], key);
    }
  }
  add(lanes, block.size() - xxh3::kStripe, xxh3::kLastSecret);
  return {
      xxh3::fold(lanes, xxh3::kSecret, xxh3::kFoldSecret, xxh3::lower_begin(block.size())),
      xxh3::fold(lanes, xxh3::kSecret, xxh3::kUpperFoldSecret, xxh3::upper_begin(block.size()))};
}

std::string digest(const Memory& memory, std::span<const std::byte> bytes,
                   const std::function<std::uint64_t()>& random) {
  using device_backend::DigestBlock;
  using device_backend::DigestResult;
  using device_backend::DigestRun;
  cuda::DigestArguments arguments{};
  std::memcpy(&arguments, bytes.data(), sizeof(arguments));
  for (const auto i : any_order(arguments.count, random)) {
    DigestBlock block{};
    const auto* const list =
        memory.reach_from_kernel(arguments.blocks + i * sizeof(block), sizeof(block));
    if (list == nullptr) return "the digest kernel's blocks are not within its reach";
    std::memcpy(&block, list, sizeof(block));
    if (block.bytes < detail::xxh3::kLeastBytes)
      return "a block of " + std::to_string(block.bytes) + " bytes for the digest kernel";
    std::vector<DigestRun> runs(block.runs);
    if (!runs.empty()) {
      const auto size = runs.size() * sizeof(DigestRun);
      const auto* const first =
          memory.reach_from_kernel(arguments.runs + block.first_run * sizeof(DigestRun), size);
      if (first == nullptr) return "the digest kernel's runs are not within its reach";
      std::memcpy(runs.data(), first, size);
    }
    std::vector<std::byte> content(block.bytes);
    if (auto broken = assemble(memory, runs, content); !broken.empty()) return broken;
    const auto result = digest_of(content, random);
    auto* const to =
        memory.reach_from_kernel(arguments.results + i * sizeof(result), sizeof(DigestResult));
    if (to == nullptr) return "the digest kernel writes where it may not";
    std::memcpy(to, &result, sizeof(result));
  }
  return {};
}

}  // namespace

const Kernel* find_kernel(const char* name) {
  static const std::array<Kernel, 2> kernels{
      Kernel{cuda::kGatherName, sizeof(cuda::GatherArguments), gather},
      Kernel{cuda::kDigestName, sizeof(cuda::DigestArguments), digest}};
  const auto found = std::find_if(kernels.begin(), kernels.end(),
                                  [&](const Kernel& one) { return one.name == name; });
  return found == kernels.end() ? nullptr : &*found;
}

}  // namespace meshstage::fake_cuda
