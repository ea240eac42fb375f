// The kernels' own source, run on the host, each thread a fiber: what it computes, where it reads,
// and that no thread waits for one that does not come. What nvcc makes of it, only a device shows.
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <meshstage/core/identity/digest.hpp>

#include "tests/support/catch.hpp"

namespace {

// A grid, one thread block after the other. A thread runs until it waits for its warp or its block;
// warps take turns in any order.
class Grid {
 public:
  explicit Grid(unsigned seed) : random_(seed) {}
  void run(unsigned blocks, unsigned threads, std::function<void()> kernel) {
    kernel_ = std::move(kernel);
    blocks_ = blocks;
    running = this;
    for (block_ = 0; block_ < blocks; ++block_) run_block(threads);
    running = nullptr;
  }
  // What a kernel asks; of the thread that runs.
  [[nodiscard]] unsigned thread() const { return now_; }
  [[nodiscard]] unsigned block() const { return block_; }
  [[nodiscard]] unsigned blocks() const { return blocks_; }
  [[nodiscard]] unsigned threads() const { return static_cast<unsigned>(all_.size()); }
  void wait_for_block() { wait(Waits::kBlock); }
  void wait_for_warp() { wait(Waits::kWarp); }
  // The value of another lane of the warp, which asks at the same time.
  std::uint64_t exchange(std::uint64_t value, unsigned lane) {
    all_[now_].value = value;
    wait(Waits::kWarp);
    const auto theirs = all_[now_ / kWarp * kWarp + lane].value;
    wait(Waits::kWarp);  // nobody has the next one before all have this one
    return theirs;
  }

  static Grid* running;

 private:
  static constexpr unsigned kWarp = 32;
  static constexpr std::size_t kStack = std::size_t{64} << 10U;
  enum class Waits { kNothing, kWarp, kBlock, kNeverAgain };
  struct Thread {
    ucontext_t context{};
    std::vector<std::byte> stack{kStack};
    Waits waits = Waits::kNothing;
    std::uint64_t value = 0;
  };

  static void begin() {
    running->kernel_();
    running->wait(Waits::kNeverAgain);
  }
  __attribute__((noinline)) static void prepare(Thread& thread) {
    ::getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.waits = Waits::kNothing;
    ::makecontext(&thread.context, begin, 0);
  }
  void wait(Waits how) {
    auto& thread = all_[now_];
    thread.waits = how;
    ::swapcontext(&thread.context, &scheduler_);
  }
  [[nodiscard]] bool all_wait(unsigned first, unsigned count, Waits how) const {
    return std::all_of(all_.begin() + first, all_.begin() + first + count,
                       [&](const Thread& one) { return one.waits == how; });
  }
  void wake(unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; ++i) all_[i].waits = Waits::kNothing;
  }

  void run_block(unsigned threads) {
    all_.resize(threads);
    for (auto& thread : all_) prepare(thread);
    std::vector<unsigned> warps(threads / kWarp);
    std::iota(warps.begin(), warps.end(), 0U);
    while (!all_wait(0, threads, Waits::kNeverAgain)) {
      std::shuffle(warps.begin(), warps.end(), random_);
      bool moved = false;
      for (const unsigned warp : warps) moved = run_warp(warp * kWarp) || moved;
      if (moved) continue;
      // Threads that have ended count as waiting, as they do on a device.
      if (std::any_of(all_.begin(), all_.end(),
                      [](const Thread& one) { return one.waits == Waits::kWarp; })) {
        throw std::logic_error("a lane waits for others of its warp that do not come");
      }
      for (auto& thread : all_) {
        if (thread.waits == Waits::kBlock) thread.waits = Waits::kNothing;
      }
    }
  }
  // Whether a thread of the warp ran.
  bool run_warp(unsigned first) {
    bool moved = false;
    for (unsigned i = first; i < first + kWarp; ++i) {
      if (all_[i].waits != Waits::kNothing) continue;
      moved = true;
      now_ = i;
      ::swapcontext(&scheduler_, &all_[i].context);
    }
    if (all_wait(first, kWarp, Waits::kWarp)) wake(first, kWarp);
    return moved;
  }

  std::function<void()> kernel_;
  std::vector<Thread> all_;
  ucontext_t scheduler_{};
  unsigned now_ = 0, block_ = 0, blocks_ = 0;
  std::mt19937 random_;
};
Grid* Grid::running = nullptr;

// The words of CUDA that the source has.
struct Index {
  unsigned (Grid::*of)() const;
  struct X {
    unsigned (Grid::*of)() const;
    operator unsigned() const { return (Grid::running->*of)(); }  // NOLINT: as on a device
  } x{of};
};
constexpr Index threadIdx{&Grid::thread}, blockIdx{&Grid::block};
constexpr Index blockDim{&Grid::threads}, gridDim{&Grid::blocks};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) ulonglong2 {
  std::uint64_t x, y;
};
ulonglong2 __ldcs(const ulonglong2* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % sizeof(*from) != 0)
    throw std::logic_error("a load that is not aligned");
  return *from;
}
void __syncthreads() { Grid::running->wait_for_block(); }
void __syncwarp() { Grid::running->wait_for_warp(); }
std::uint64_t __shfl_sync(unsigned, std::uint64_t value, unsigned lane) {
  return Grid::running->exchange(value, lane);
}
std::uint64_t __shfl_xor_sync(unsigned, std::uint64_t value, unsigned other) {
  return Grid::running->exchange(value, Grid::running->thread() % 32 ^ other);
}

}  // namespace

#define __device__
#define __global__
#define __constant__ static const
#define __shared__ static
#define __launch_bounds__(...)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#include "core/device/cuda/kernels.cu"
#pragma GCC diagnostic pop

using namespace meshstage;

namespace {

// Memory that kernels read, aligned as a device's is.
class Source {
 public:
  explicit Source(unsigned seed) : random_(seed) {
    for (auto& vector : memory_) vector = {random_(), random_()};
  }
  [[nodiscard]] const std::byte* at(std::size_t byte) const {
    return reinterpret_cast<const std::byte*>(memory_.data()) + byte;
  }
  std::uint64_t random(std::uint64_t below) { return random_() % below; }

 private:
  std::mt19937_64 random_;
  std::vector<ulonglong2> memory_{(std::size_t{512} << 10U) / sizeof(ulonglong2)};
};

std::uint64_t address_of(const void* memory) { return reinterpret_cast<std::uint64_t>(memory); }

// Runs the kernel on one block; true if its digest is the host's.
bool is_right(unsigned seed, std::uint64_t bytes, const std::vector<DigestRun>& runs) {
  std::vector<std::byte> content(bytes);
  for (const auto& run : runs) {
    std::memcpy(content.data() + run.offset, reinterpret_cast<const std::byte*>(run.source),
                run.bytes);
  }
  const DigestBlock block{bytes, 0, runs.size()};
  DigestResult result{};
  Grid(seed).run(1, kDigestThreads, [&] {
    meshstage_digest({address_of(&block), address_of(runs.data()), address_of(&result), 1, 0});
  });
  const auto expected = digest_block(content);
  return result.low == expected.low && result.high == expected.high;
}

}  // namespace

TEST_CASE("the digest kernel's source digests every length as the host does") {
  const Source source(1);
  std::vector<std::uint64_t> sizes{241, 242, 255, 256, 257, 319, 320, 321, 960, 1008};
  // Around the edges of a group, and of what is summed between two barriers.
  for (const std::uint64_t kib : {1U, 2U, 4U, kRound - 1, kRound, kRound + 1, 2 * kRound, 128U}) {
    for (const int more : {-1, 0, 1, 63, 64, 65}) sizes.push_back(kib * 1024 + more);
  }
  for (const auto bytes : sizes) {
    INFO(bytes << " bytes");
    REQUIRE(is_right(1, bytes, {{0, address_of(source.at(16)), bytes}}));
  }
}

TEST_CASE("the digest kernel's source digests runs and zeros as the host does") {
  CHECK(is_right(1, 5000, {}));
  for (unsigned seed = 0; seed < 40; ++seed) {
    INFO("seed " << seed);
    Source source(seed);
    const auto bytes = 241 + source.random(seed % 4 == 0 ? 140'000 : 20'000);
    const auto longest = 16 + source.random(seed % 2 == 0 ? bytes : 200);
    std::vector<DigestRun> runs;
    for (std::uint64_t at = 16 * source.random(8); at < bytes;) {
      const auto n = 1 + source.random(std::min(longest, bytes - at));
      runs.push_back({at, address_of(source.at(16 * source.random(1000))), n});
      at = (at + n + 15) / 16 * 16 + 16 * source.random(4);
    }
    REQUIRE(is_right(seed, bytes, runs));
  }
}

TEST_CASE("the gather kernel's source copies items of every size and alignment") {
  Source source(3);
  std::vector<std::byte> target(300'000, std::byte{0xEE}), expected = target;
  std::vector<GatherItem> items;
  for (std::uint64_t at = 0; at + 3000 < target.size(); at += 3000) {
    const auto from = source.random(1000), to = at + source.random(20);
    const auto bytes = source.random(2900);
    std::memcpy(expected.data() + to, source.at(from), bytes);
    items.push_back({address_of(target.data() + to), address_of(source.at(from)), bytes});
  }
  Grid(1).run(7, meshstage::cuda::kGatherThreads, [&] {
    meshstage_gather({address_of(items.data()), static_cast<std::uint32_t>(items.size()), 0});
  });
  CHECK(target == expected);
}
