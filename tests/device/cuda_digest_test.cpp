// Digests that a device makes of its memory: equal to the host's, for every length and every way a
// block is put together.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/identity/digest.hpp>

#include "tests/device/cuda_support.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using test::Cuda;

namespace {

constexpr std::uint64_t kKiB = 1024;
constexpr std::size_t kLargest = (std::size_t{4} << 20U) + 64;

// Blocks to digest out of one tensor of random bytes, and what the host makes of them.
class Blocks {
 public:
  explicit Blocks(Cuda& cuda, std::uint64_t seed = 1, std::size_t bytes = kLargest)
      : cuda_(cuda), random_(seed), bytes_(bytes), tensor_(cuda.tensor(signed_of(bytes))) {
    for (auto& byte : bytes_) byte = static_cast<std::byte>(random_());
    cuda.write(tensor_, bytes_);
  }
  void begin(std::uint64_t bytes) { blocks_.push_back({bytes, 0}); }
  // A run of the latest block, from byte `from` of the tensor on.
  void run(std::uint64_t offset, std::uint64_t from, std::uint64_t bytes) {
    runs_.push_back({offset, tensor_.storage().data() + from, bytes});
    ++blocks_.back().runs;
  }
  void whole(std::uint64_t bytes, std::uint64_t from = 0) {
    begin(bytes);
    run(0, from, bytes);
  }
  [[nodiscard]] std::uint64_t random(std::uint64_t below) { return random_() % below; }

  [[nodiscard]] DeviceDigests issue(DeviceStream& stream) const {
    return stream.digest(blocks_, runs_);
  }
  // The blocks whose digests differ from the host's.
  [[nodiscard]] std::string wrong(const DeviceDigests& digests) const {
    digests.made.wait();
    std::string found;
    auto run = runs_.begin();
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      std::vector<std::byte> block(blocks_[i].bytes);
      for (std::uint64_t n = 0; n < blocks_[i].runs; ++n, ++run) {
        const auto from = static_cast<const std::byte*>(run->source) - tensor_.storage().data();
        std::memcpy(block.data() + run->offset, bytes_.data() + from, run->bytes);
      }
      const auto expected = digest_block(block);
      if (digests.all[i] == DeviceDigest{expected.low, expected.high}) continue;
      found += std::to_string(i) + " of " + std::to_string(blocks_[i].bytes) + " bytes, ";
    }
    return found;
  }
  [[nodiscard]] std::string wrong() const {
    auto stream = cuda_.runtime().open_stream(Cuda::kDevice);
    return wrong(issue(stream));
  }
  [[nodiscard]] const Tensor& tensor() const { return tensor_; }

 private:
  static std::int64_t signed_of(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }
  Cuda& cuda_;
  std::mt19937_64 random_;
  std::vector<std::byte> bytes_;
  Tensor tensor_;
  std::vector<DeviceBlock> blocks_;
  std::vector<DeviceRun> runs_;
};

}  // namespace

TEST_CASE("cuda: digests of blocks are the host's at every length") {
  Cuda cuda;
  REQUIRE(cuda.runtime().can_digest(Cuda::kDevice));
  Blocks blocks(cuda);
  for (std::uint64_t bytes = kLeastDigestedBytes; bytes < 1400; ++bytes) blocks.whole(bytes);
  // Around the edges of a KiB; 60 of them are summed between two barriers of a thread block.
  for (const std::uint64_t kib : {2, 3, 4, 5, 15, 16, 59, 60, 61, 64, 119, 120, 121, 1000}) {
    for (const std::uint64_t more : {0, 1, 2, 16, 63, 64, 65, 128, 960, 1008, 1023})
      blocks.whole(kib * kKiB + more, 16 * (kib % 4));
  }
  for (const std::uint64_t bytes : {(4U << 20U) - 1, 4U << 20U, (4U << 20U) + 1})
    blocks.whole(bytes);
  CHECK(blocks.wrong() == "");
}

TEST_CASE("cuda: digests of blocks are the host's however runs and zeros lie in them") {
  Cuda cuda;
  Blocks blocks(cuda, 2, std::size_t{256} << 10U);
  blocks.begin(5000);  // zeros alone
  blocks.begin(8192);  // begins and ends with zeros; a run begins within a stripe
  blocks.run(16, 0, 1);
  blocks.run(48, 32, 3000);
  blocks.run(4096, 16, 17);
  blocks.begin(kKiB);  // a run in each vector
  for (std::uint64_t at = 0; at < kKiB; at += 16) blocks.run(at, at * 2, 1 + at / 16 % 16);
  blocks.begin(70'001);  // ends within the last 64 bytes
  blocks.run(0, 64, 69'960);
  blocks.begin(70'001);  // ends with the block
  blocks.run(69'984, 64, 17);
  blocks.begin(200 * kKiB);  // what many warps have each look up anew
  for (std::uint64_t at = 0; at < 200 * kKiB; at += 2 * kKiB) blocks.run(at, at, 2 * kKiB - at % 7);
  blocks.begin(128 * kKiB);  // as an image's: every 64 bytes something of any size
  for (std::uint64_t at = 0; at < 128 * kKiB; at += 64) blocks.run(at, at, 1 + at / 64 % 64);
  CHECK(blocks.wrong() == "");
}

TEST_CASE("cuda: digests of blocks are the host's for random ones") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Cuda cuda(seed);
    Blocks blocks(cuda, seed, std::size_t{64} << 10U);
    for (int i = 0; i < 8; ++i) {
      const auto bytes = kLeastDigestedBytes + blocks.random(60'000);
      blocks.begin(bytes);
      const auto longest = 16 + blocks.random(bytes);
      for (std::uint64_t at = 16 * blocks.random(8); at < bytes;) {
        const auto n = 1 + blocks.random(std::min(longest, bytes - at));
        blocks.run(at, 16 * blocks.random(((64 << 10) - n) / 16), n);
        at = (at + n + 15) / 16 * 16 + 16 * blocks.random(4);
      }
    }
    INFO("seed " << seed);
    REQUIRE(blocks.wrong() == "");
  }
}

TEST_CASE("cuda: digests come behind an event of the trainer's stream, and it behind them") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Cuda cuda(seed);
    auto& runtime = cuda.runtime();
    const auto trainer = cuda.open_stream();
    const auto tensor = cuda.tensor(10'000, 1);
    auto ours = runtime.open_stream(Cuda::kDevice);
    const std::vector<DeviceBlock> blocks{{10'000, 1}};
    const std::vector<DeviceRun> runs{{0, tensor.storage().data(), 10'000}};
    for (unsigned char step = 2; step < 5; ++step) {
      cuda.set(tensor, step, trainer);
      ours.wait(runtime.record({Cuda::kDevice, trainer}));
      const auto digests = ours.digest(blocks, runs);
      runtime.hold({Cuda::kDevice, trainer}, digests.made);
      cuda.set(tensor, 99, trainer);
      if (seed % 3 == 0) cuda.synchronize(trainer);
      digests.made.wait();
      const auto expected = digest_block(std::vector<std::byte>(10'000, std::byte{step}));
      REQUIRE(digests.all[0] == DeviceDigest{expected.low, expected.high});
    }
    cuda.synchronize(trainer);
    cuda.close_stream(trainer);
  }
}

TEST_CASE("cuda: lists and results of digests are made once, and not written while they are read") {
  Cuda cuda;
  if (Cuda::real()) return;
  Blocks first(cuda, 1, 10'000), second(cuda, 2, 10'000);
  first.whole(10'000);
  second.whole(9'000);
  auto stream = cuda.runtime().open_stream(Cuda::kDevice);
  auto kept = first.issue(stream);
  CHECK(first.wrong(kept) == "");
  CHECK(second.wrong(second.issue(stream)) == "");
  CHECK(first.wrong(kept) == "");
  kept = {};
  const auto made = [] {
    std::uint64_t calls = 0;
    for (const auto* name : {"cuMemAlloc", "cuMemHostRegister", "cuEventCreate", "cuStreamCreate"})
      calls += Cuda::fake().calls(name);
    return calls;
  };
  const auto both = [&] {
    CHECK(first.wrong(first.issue(stream)) == "");
    CHECK(second.wrong(second.issue(stream)) == "");
  };
  both();  // an event more than above, where one pair of results was kept
  const auto before = made();
  for (int i = 0; i < 5; ++i) both();
  CHECK(made() == before);
}

TEST_CASE("cuda: lists of a digest that has not happened are not written, though nobody reads it") {
  Cuda cuda;
  if (Cuda::real()) return;
  Blocks one(cuda, 1, 10'000), two(cuda, 2, 10'000);
  one.whole(10'000);
  two.whole(5'000);
  two.whole(7'000, 16);
  auto stream = cuda.runtime().open_stream(Cuda::kDevice);
  CHECK(two.wrong(two.issue(stream)) == "");
  Cuda::fake().hold(true);
  static_cast<void>(one.issue(stream));
  const auto digests = two.issue(stream);
  Cuda::fake().hold(false);
  CHECK(two.wrong(digests) == "");
}

TEST_CASE("cuda: lists of a digest that has not happened outlive their stream") {
  Cuda cuda;
  if (Cuda::real()) return;
  cuda.wait_until_nothing_is_kept();
  Blocks blocks(cuda, 1, 10'000);
  blocks.whole(10'000);
  const auto bytes = Cuda::fake().device_bytes();
  const auto registered = Cuda::fake().registered_bytes();
  auto stream = std::make_unique<DeviceStream>(cuda.runtime().open_stream(Cuda::kDevice));
  Cuda::fake().hold(true);
  auto digests = blocks.issue(*stream);
  stream.reset();
  const bool read = GENERATE(true, false);
  if (!read) digests = {};
  CHECK(cuda.runtime().kept() == 1);
  CHECK(Cuda::fake().device_bytes() > bytes);
  Cuda::fake().hold(false);
  cuda.wait_until_nothing_is_kept();
  if (read) CHECK(blocks.wrong(digests) == "");
  digests = {};
  CHECK(Cuda::fake().device_bytes() == bytes);
  CHECK(Cuda::fake().registered_bytes() == registered);
}

TEST_CASE("cuda: blocks and runs that cannot be digested are refused before anything is issued") {
  Cuda cuda;
  const auto tensor = cuda.tensor(4096);
  const auto* const data = tensor.storage().data();
  auto stream = cuda.runtime().open_stream(Cuda::kDevice);
  const auto refused = [&](DeviceBlock block, const std::vector<DeviceRun>& runs,
                           const std::string& why) {
    const std::vector<DeviceBlock> blocks{{4096, 0}, block};
    CHECK_THROWS_AS(stream.digest(blocks, runs), InvalidArgument);
    CHECK_THROWS_WITH(stream.digest(blocks, runs), contains_text("block 1 to digest: " + why));
  };
  refused({240, 0}, {}, "it has 240 bytes");
  refused({4096, 2}, {{0, data, 16}}, "there are too few runs");
  refused({4096, 1}, {{8, data, 16}}, "a run is not aligned");
  refused({4096, 1}, {{0, data + 8, 16}}, "a run is not aligned");
  refused({4096, 1}, {{0, data, 0}}, "a run is empty");
  refused({4096, 1}, {{4080, data, 17}}, "a run is empty, overlaps");
  refused({4096, 2}, {{0, data, 17}, {16, data, 1}}, "a run is empty, overlaps");
  CHECK_THROWS_WITH(stream.digest({}, std::vector<DeviceRun>{{0, data, 16}}),
                    contains_text("more runs"));
  CHECK(stream.digest({}, {}).all == nullptr);
  auto& cpu = DeviceRuntime::of(DeviceType::kCpu);
  CHECK_FALSE(cpu.can_digest(kCpu));
  CHECK_THROWS_AS(cpu.open_stream(kCpu).digest({}, {}), InvalidState);
}
