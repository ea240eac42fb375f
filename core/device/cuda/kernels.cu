// Device code alone: compiled to a fatbin, loaded by the driver, found by name.
#include <cstddef>

#include <meshstage/core/device/backend.hpp>
#include <meshstage/core/device/cuda/kernels.hpp>
#include <meshstage/core/device/xxh3.hpp>

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
__device__ bool copy_wide(unsigned char* target, const unsigned char* source, std::uint64_t bytes) {
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

// A thread block digests one block. Its summing warps add up groups (a KiB each, in any order), and
// the first warp scrambles the sums of the round before, which is the only chain.
namespace {

namespace xxh3 = meshstage::detail::xxh3;
using meshstage::cuda::DigestArguments;
using meshstage::cuda::kDigestThreads;
using meshstage::cuda::kDigestWarps;
using meshstage::device_backend::DigestBlock;
using meshstage::device_backend::DigestResult;
using meshstage::device_backend::DigestRun;
using xxh3::Word;

constexpr unsigned kWarp = 32;
constexpr unsigned kAll = 0xFFFFFFFF;  // a warp's lanes
constexpr std::uint64_t kVector = 16;  // bytes that a lane loads at a time
constexpr std::uint64_t kGroupBytes = xxh3::kStripe * xxh3::kGroup;
constexpr unsigned kAtOnce = 4;                             // groups that a warp loads at a time
constexpr unsigned kRound = kAtOnce * kDigestWarps;         // groups between two barriers
constexpr std::uint64_t kMostRuns = kGroupBytes / kVector;  // in a group

__constant__ xxh3::Secret secret = xxh3::kSecret;
__constant__ xxh3::Lanes begin_of_lanes = xxh3::kBegin;

// The last of the runs [begin, end) that begins at or before byte `at`, or else `begin`.
__device__ std::uint64_t find(const DigestRun* runs, std::uint64_t begin, std::uint64_t end,
                              std::uint64_t at) {
  while (end - begin > 1) {
    const std::uint64_t middle = begin + (end - begin) / 2;
    if (runs[middle].offset <= at) {
      begin = middle;
    } else {
      end = middle;
    }
  }
  return begin;
}

// The vector at byte `at` of the block, a multiple of kVector: of the run, and zeros outside it.
__device__ ulonglong2 load(const DigestRun& run, std::uint64_t at) {
  ulonglong2 data{0, 0};
  if (at < run.offset || at - run.offset >= run.bytes) return data;
  const std::uint64_t from = at - run.offset;
  const std::uint64_t left = run.bytes - from;
  if (left >= kVector) return __ldcs(reinterpret_cast<const ulonglong2*>(run.source + from));
  const auto* const bytes = reinterpret_cast<const unsigned char*>(run.source + from);
  for (unsigned i = 0; i < left; ++i) {
    const Word byte = bytes[i];
    if (i < 8) {
      data.x |= byte << 8 * i;
    } else {
      data.y |= byte << 8 * (i - 8);
    }
  }
  return data;
}

// A block's runs as one warp reads them.
struct Runs {
  const DigestRun* all;
  std::uint64_t count;
  DigestRun last;  // where the warp was last

  // Whether all of [at, at + bytes) lies in `last`, which is looked up anew if need be.
  __device__ bool moved_to(std::uint64_t at, std::uint64_t bytes) {
    const auto holds = [&] { return last.offset <= at && at + bytes <= last.offset + last.bytes; };
    if (holds()) return true;
    if (count == 0) return false;
    last = all[find(all, 0, count, at)];
    return holds();
  }
  // Vectors of one group for each lane, which begins at `group`.
  __device__ ulonglong2 scattered(std::uint64_t group, std::uint64_t at) const {
    if (count == 0) return {0, 0};
    const std::uint64_t first = find(all, 0, count, group);
    const std::uint64_t end = first + kMostRuns + 1 < count ? first + kMostRuns + 1 : count;
    return load(all[find(all, first, end, at)], at);
  }
};

// What a vector of a stripe adds to its two lanes of XXH3.
__device__ ulonglong2 added(ulonglong2 data, ulonglong2 key) {
  return {data.y + xxh3::product(data.x, key.x), data.x + xxh3::product(data.y, key.y)};
}

// Adds up a group over the warp's lanes, which have two vectors each, and keeps it.
__device__ void keep_sum(ulonglong2 low, ulonglong2 high, Word (&kept)[xxh3::kLanes]) {
  Word even = low.x + high.x, odd = low.y + high.y;
  for (unsigned other = 4; other < kWarp; other *= 2) {
    even += __shfl_xor_sync(kAll, even, other);
    odd += __shfl_xor_sync(kAll, odd, other);
  }
  const unsigned lane = threadIdx.x % kWarp;
  if (lane < 4) {
    kept[2 * lane] = even;
    kept[2 * lane + 1] = odd;
  }
}

// Groups of a block: those that are scrambled, and what is behind them, of 0 to 15 stripes.
struct Groups {
  explicit __device__ Groups(std::uint64_t bytes)
      : scrambled((bytes - 1) / kGroupBytes),
        rest(static_cast<unsigned>((bytes - 1) % kGroupBytes / xxh3::kStripe)) {}
  std::uint64_t scrambled;
  unsigned rest;
};

// Sums groups [first, first + kAtOnce) into `kept`.
__device__ void sum_groups(const Groups& groups, Runs& runs, std::uint64_t first,
                           Word (*kept)[xxh3::kLanes]) {
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned stripe = lane / 4, pair = lane % 4 * 2;
  const ulonglong2 low{secret[stripe + pair], secret[stripe + pair + 1]};
  const ulonglong2 high{secret[stripe + pair + 8], secret[stripe + pair + 9]};
  const std::uint64_t at = first * kGroupBytes;
  constexpr std::uint64_t kHalf = kGroupBytes / 2;
  if (first + kAtOnce <= groups.scrambled && runs.moved_to(at, kAtOnce * kGroupBytes)) {
    const auto* const from =
        reinterpret_cast<const ulonglong2*>(runs.last.source + (at - runs.last.offset)) + lane;
    ulonglong2 data[2 * kAtOnce];
#pragma unroll
    for (unsigned i = 0; i < 2 * kAtOnce; ++i) data[i] = __ldcs(from + i * (kHalf / kVector));
#pragma unroll
    for (unsigned i = 0; i < kAtOnce; ++i)
      keep_sum(added(data[2 * i], low), added(data[2 * i + 1], high), kept[i]);
    return;
  }
#pragma unroll 1
  for (unsigned i = 0; i < kAtOnce; ++i) {
    const std::uint64_t group = first + i;
    if (group > groups.scrambled) return;
    const unsigned stripes = group < groups.scrambled ? xxh3::kGroup : groups.rest;
    const std::uint64_t begin = group * kGroupBytes, mine = begin + lane * kVector;
    ulonglong2 a{0, 0}, b{0, 0};
    if (stripe < stripes) a = added(runs.scattered(begin, mine), low);
    if (stripe + 8 < stripes) b = added(runs.scattered(begin, mine + kHalf), high);
    __syncwarp();
    keep_sum(a, b, kept[i]);
  }
}

// The block's last 64 bytes, wherever they begin: word `lane % 8` of them.
__device__ Word last_word(const Runs& runs, std::uint64_t bytes, Word* words) {
  const unsigned lane = threadIdx.x % kWarp;
  const std::uint64_t begin = bytes - xxh3::kStripe;
  const std::uint64_t aligned = begin / kVector * kVector;
  const std::uint64_t at = aligned + lane * kVector;
  if (lane < 5) {
    const ulonglong2 data = at < bytes ? runs.scattered(aligned, at) : ulonglong2{0, 0};
    words[2 * lane] = data.x;
    words[2 * lane + 1] = data.y;
  }
  __syncwarp();
  const unsigned from = static_cast<unsigned>(begin - aligned) + lane % 8 * 8;
  const unsigned shift = 8 * (from % 8);
  const Word low = words[from / 8];
  return shift == 0 ? low : low >> shift | words[from / 8 + 1] << (64 - shift);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kDigestThreads, 2)
    meshstage_digest(DigestArguments arguments) {
  __shared__ Word sums[2][kRound][xxh3::kLanes];
  __shared__ Word tail[10];
  if (blockIdx.x >= arguments.count) return;
  const DigestBlock block = reinterpret_cast<const DigestBlock*>(arguments.blocks)[blockIdx.x];
  Runs runs{reinterpret_cast<const DigestRun*>(arguments.runs) + block.first_run, block.runs, {}};
  const Groups groups(block.bytes);
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned lane = threadIdx.x % kWarp;
  const unsigned mine = lane % xxh3::kLanes;  // of XXH3's lanes; four threads have the same
  const Word key = secret[xxh3::kScrambleSecret / sizeof(Word) + mine];
  Word sum = begin_of_lanes[mine];

  const std::uint64_t rounds = groups.scrambled / kRound + 1;  // the rest counts as a group
  for (std::uint64_t round = 0; round <= rounds; ++round) {
    if (warp > 0) {
      const unsigned first = (warp - 1) * kAtOnce;
      if (round < rounds) {
        sum_groups(groups, runs, round * kRound + first, &sums[round % 2][first]);
      }
    } else if (round > 0) {
      const std::uint64_t left = groups.scrambled - (round - 1) * kRound;
      const unsigned count = left < kRound ? static_cast<unsigned>(left) : kRound;
      const auto& done = sums[(round - 1) % 2];
#pragma unroll 8
      for (unsigned i = 0; i < count; ++i) sum = xxh3::scramble(sum + done[i][mine], key);
      if (count < kRound) sum += done[count][mine];
    }
    __syncthreads();
  }
  if (warp > 0) return;

  const Word last = last_word(runs, block.bytes, tail);
  sum += xxh3::product(last, xxh3::secret_word(secret, xxh3::kLastSecret + 8 * mine)) +
         __shfl_xor_sync(kAll, last, 1);
  xxh3::Lanes lanes{};
#pragma unroll
  for (unsigned i = 0; i < xxh3::kLanes; ++i) lanes[i] = __shfl_sync(kAll, sum, i);
  auto& result = reinterpret_cast<DigestResult*>(arguments.results)[blockIdx.x];
  if (lane == 0) {
    result.low = xxh3::fold(lanes, secret, xxh3::kFoldSecret, xxh3::lower_begin(block.bytes));
  } else if (lane == 1) {
    result.high = xxh3::fold(lanes, secret, xxh3::kUpperFoldSecret, xxh3::upper_begin(block.bytes));
  }
}
