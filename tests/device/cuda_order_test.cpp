// Order between streams: what the runtime promises, and that the fake driver bites where a promise
// is not asked for.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <meshstage/core/error/error.hpp>

#include "tests/device/cuda_support.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using test::Cuda;
using test::HostPages;

namespace {

constexpr std::uint64_t kSeeds = 50;
constexpr std::size_t kBytes = 8192;

// Every byte of a run has one value; which.
unsigned value_of(std::span<const std::byte> bytes) {
  if (std::any_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b != bytes[0]; }))
    return 1000;
  return std::to_integer<unsigned>(bytes[0]);
}

struct Order {
  explicit Order(std::uint64_t seed)
      : cuda(seed),
        host(kBytes),
        tensor(cuda.tensor(kBytes, 1)),
        trainer(cuda.open_stream()),
        ours(cuda.runtime().open_stream(Cuda::kDevice)) {
    // Two copies, so that a batch is what is torn.
    copies = {{host.data(), tensor.storage().data(), kBytes / 2},
              {host.data() + kBytes / 2, tensor.storage().data() + kBytes / 2, kBytes / 2}};
  }
  ~Order() { cuda.close_stream(trainer); }
  [[nodiscard]] unsigned staged() const { return value_of(host.all()); }

  Cuda cuda;
  HostPages host;
  Tensor tensor;
  StreamHandle trainer;
  DeviceStream ours;
  std::vector<DeviceCopy> copies;
};

// How many of the seeds give each value.
template <class F>
std::size_t seeds_that(F&& f) {
  std::size_t count = 0;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) count += f(seed) ? 1 : 0;
  return count;
}

}  // namespace

TEST_CASE("cuda: copies behind an event of the trainer's stream see what it had done") {
  const bool gather = GENERATE(true, false);
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Order o(seed);
    o.cuda.set(o.tensor, 2, o.trainer);
    o.ours.wait(o.cuda.runtime().record({Cuda::kDevice, o.trainer}));
    if (gather) {
      o.ours.gather(CopyDirection::kToHost, o.copies);
    } else {
      o.ours.copy(CopyDirection::kToHost, o.copies);
    }
    const auto staged = o.ours.record();
    // And what it does next waits for them, on the device.
    o.cuda.runtime().hold({Cuda::kDevice, o.trainer}, staged);
    o.cuda.set(o.tensor, 3, o.trainer);
    o.cuda.synchronize(o.trainer);
    staged.wait();
    REQUIRE(o.staged() == 2);
    REQUIRE(value_of(o.cuda.read(o.tensor)) == 3);
  }
}

TEST_CASE("cuda: the legacy and the per-thread default stream are streams of the trainer's, too") {
  for (const auto handle : {kLegacyStream, kPerThreadStream, StreamHandle{0}}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      Order o(seed);
      o.cuda.set(o.tensor, 2, handle);
      o.ours.wait(o.cuda.runtime().record({Cuda::kDevice, handle}));
      o.ours.copy(CopyDirection::kToHost, o.copies);
      const auto staged = o.ours.record();
      o.cuda.runtime().hold({Cuda::kDevice, handle}, staged);
      o.cuda.set(o.tensor, 3, handle);
      o.cuda.synchronize(handle);
      REQUIRE(o.staged() == 2);
    }
  }
}

TEST_CASE("the fake driver bites: copies that wait for nothing miss what the trainer had issued") {
  Cuda once;
  if (Cuda::real()) return;
  CHECK(seeds_that([](std::uint64_t seed) {
          Order o(seed);
          o.cuda.set(o.tensor, 2, o.trainer);
          o.ours.copy(CopyDirection::kToHost, o.copies);
          o.ours.record().wait();
          return o.staged() != 2;
        }) > kSeeds / 2);
}

TEST_CASE("the fake driver bites: a trainer that does not wait overwrites what is being copied") {
  Cuda once;
  if (Cuda::real()) return;
  CHECK(seeds_that([](std::uint64_t seed) {
          Order o(seed);
          o.ours.copy(CopyDirection::kToHost, o.copies);
          const auto staged = o.ours.record();
          o.cuda.set(o.tensor, 3, o.trainer);
          o.cuda.synchronize(o.trainer);
          staged.wait();
          return o.staged() != 1;
        }) > kSeeds / 2);
}

TEST_CASE("the fake driver bites: reading before an event is done reads what was there before") {
  Cuda once;
  if (Cuda::real()) return;
  CHECK(seeds_that([](std::uint64_t seed) {
          Order o(seed);
          std::memset(o.host.data(), 9, kBytes);
          o.ours.copy(CopyDirection::kToHost, o.copies);
          const auto seen = o.staged();
          o.ours.record().wait();
          return seen == 9;
        }) == kSeeds);
}

TEST_CASE("the fake driver bites: memory that is freed, or unlocked, before it is copied") {
  Cuda once;
  if (Cuda::real()) return;
  const bool freed = GENERATE(true, false);
  CHECK(seeds_that([&](std::uint64_t seed) {
          Order o(seed);
          auto host = std::make_unique<HostPages>(kBytes);
          const auto target = host->data();
          o.ours.copy(CopyDirection::kToHost,
                      std::vector<DeviceCopy>{{target, o.tensor.storage().data(), kBytes}});
          if (freed) {
            o.tensor = Tensor();
          } else {
            host.reset();
          }
          o.ours.record().wait();
          return !o.cuda.forgive().empty();
        }) == kSeeds);
  CHECK_FALSE(once.forgive().empty());
}

TEST_CASE("the fake driver bites: a kernel that is given the host's own address for host memory") {
  Cuda cuda;
  if (Cuda::real()) return;
  // As if is_pinned() were all that decided: this memory's address for kernels is another.
  HostPages host(4096);
  const auto tensor = cuda.tensor(16, 4);
  auto stream = cuda.runtime().open_stream(Cuda::kDevice);
  stream.gather(CopyDirection::kWithinDevice,
                std::vector<DeviceCopy>{{host.data(), tensor.storage().data(), 16}});
  stream.record().wait();
  CHECK_THAT(cuda.forgive(), contains_text("writes where it may not"));
}

TEST_CASE("the fake driver bites: a device's address faults under the host's hand") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto tensor = cuda.tensor(16, 4);
  CHECK_THROWS_AS(tensor.data<std::uint8_t>(), InvalidState);  // where anybody asks
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  CHECK(::write(ends[1], tensor.storage().data(), 1) == -1);  // and where nobody does
  CHECK(errno == EFAULT);
  ::close(ends[0]);
  ::close(ends[1]);
}
