#pragma once
// The kernels and their arguments: read by the host's compiler and by nvcc.
#include <cstdint>

namespace meshstage::cuda {

/// One struct by value for each kernel. `items` is an array of device_backend::GatherItem.
struct GatherArguments {
  std::uint64_t items;
  std::uint32_t count;
  std::uint32_t unused;
};
inline constexpr char kGatherName[] = "meshstage_gather";
inline constexpr unsigned kGatherThreads = 512;

/// `blocks`, `runs`, `results`: arrays of device_backend::DigestBlock, DigestRun and DigestResult.
/// The grid has a thread block for each of `count` blocks.
struct DigestArguments {
  std::uint64_t blocks;
  std::uint64_t runs;
  std::uint64_t results;
  std::uint32_t count;
  std::uint32_t unused;
};
inline constexpr char kDigestName[] = "meshstage_digest";
/// Warps that add up; one more has the chain.
inline constexpr unsigned kDigestWarps = 15;
inline constexpr unsigned kDigestThreads = 32 * (kDigestWarps + 1);

/// The fatbin of kernels.cu; null where this was built without nvcc.
const void* kernels_fatbin() noexcept;

}  // namespace meshstage::cuda
