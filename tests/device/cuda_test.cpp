// What a CUDA device does for us: copies, page-locks, what it says of memory.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include <meshstage/core/error/error.hpp>

#include "tests/device/cuda_support.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using test::counting;
using test::Cuda;
using test::HostPages;

TEST_CASE("cuda: copies arrive, to and from page-locked and pageable memory, by batch and kernel") {
  Cuda cuda;
  const bool pinned = GENERATE(true, false);
  const bool gather = GENERATE(true, false);
  // Odd addresses on both sides, sizes up to beyond a kernel's item, and nothing.
  const std::vector<std::size_t> sizes{1, 0, 16, 4096, 7, 300'001, 64, 15, 33};
  HostPages host(400'000, pinned);
  const auto device = cuda.tensor(400'000, 0, 3);
  const auto bytes = counting(400'000);
  auto stream = cuda.runtime().open_stream(Cuda::kDevice);
  std::vector<DeviceCopy> there, back;
  std::size_t at = 0;
  for (const auto size : sizes) {
    there.push_back({device.storage().data() + at, host.data() + at, size});
    back.push_back({host.data() + at, device.storage().data() + at, size});
    at += size;
  }
  std::copy_n(bytes.data(), at, host.data());
  const auto issue = [&](CopyDirection direction, const std::vector<DeviceCopy>& copies) {
    if (gather) {
      stream.gather(direction, copies);
    } else {
      stream.copy(direction, copies);
    }
    stream.record().wait();
  };
  issue(CopyDirection::kToDevice, there);
  auto seen = cuda.read(device);
  CHECK(std::equal(seen.begin(), seen.begin() + static_cast<std::ptrdiff_t>(at), bytes.begin()));
  std::memset(host.data(), 0xEE, 400'000);
  issue(CopyDirection::kToHost, back);
  CHECK(std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(at), host.data()));
  CHECK(host.data()[at] == std::byte{0xEE});
  // Within the device.
  const auto other = cuda.tensor(1000);
  stream.copy(CopyDirection::kWithinDevice,
              std::vector<DeviceCopy>{{other.storage().data(), device.storage().data(), 999}});
  stream.record().wait();
  seen = cuda.read(other);
  CHECK(std::equal(seen.begin(), seen.end() - 1, bytes.begin()));
  if (!Cuda::real() && pinned && gather) CHECK(Cuda::fake().calls("cuLaunchKernelEx") >= 2);
}

TEST_CASE("cuda: memory is page-locked in pieces, and no copy spans the edge of one") {
  Cuda cuda;
  const std::size_t bytes = kPinnedPieceBytes + 8192;
  HostPages host(bytes);
  CHECK(cuda.runtime().is_pinned(host.all()));
  if (!Cuda::real()) {
    CHECK(Cuda::fake().registered_bytes() >= bytes);
    CHECK(Cuda::fake().calls("cuMemHostRegister") >= 2);
  }
  const auto device = cuda.tensor(4096);
  const auto pattern = counting(4096, 9);
  cuda.write(device, pattern);
  auto* const across = host.data() + kPinnedPieceBytes - 1000;
  auto stream = cuda.runtime().open_stream(Cuda::kDevice);
  SECTION("by batch") {
    stream.copy(CopyDirection::kToHost,
                std::vector<DeviceCopy>{{across, device.storage().data(), 4096}});
  }
  SECTION("by kernel") {
    stream.gather(CopyDirection::kToHost,
                  std::vector<DeviceCopy>{{across, device.storage().data(), 4096}});
  }
  stream.record().wait();
  CHECK(std::equal(pattern.begin(), pattern.end(), across));
}

TEST_CASE("cuda: page-locking is all or nothing, and whole pages") {
  Cuda cuda;
  auto& pinner = cuda.runtime().pinner(Cuda::kDevice);
  HostPages host(kPinnedPieceBytes + 4096, false);
  CHECK_THROWS_AS(pinner.pin(host.all().subspan(1, 4096)), InvalidArgument);
  CHECK_THROWS_AS(pinner.pin(host.all().subspan(0, 100)), InvalidArgument);
  if (Cuda::real()) return;
  const auto before = Cuda::fake().registered_bytes();
  SECTION("the second piece is refused") {
    Cuda::fake().fail_function("cuMemHostRegister", 2, 2);
    CHECK_THROWS_AS(pinner.pin(host.all()), OutOfMemory);
  }
  SECTION("a kernel's address for it is refused") {
    Cuda::fake().fail_function("cuMemHostGetDevicePointer", 2, 1);
    CHECK_THROWS_AS(pinner.pin(host.all()), InvalidState);
  }
  CHECK(Cuda::fake().registered_bytes() == before);
  CHECK_FALSE(cuda.runtime().is_pinned(host.all().first(4096)));
}

TEST_CASE("cuda: locking keeps what the memory holds") {
  Cuda cuda;
  HostPages host(64 << 10U, false);
  const auto bytes = counting(host.all().size());
  std::copy(bytes.begin(), bytes.end(), host.data());
  const PinnedPages pages(cuda.runtime().pinner(Cuda::kDevice), host.all());
  CHECK(std::equal(bytes.begin(), bytes.end(), host.data()));
}

TEST_CASE("cuda: what memory is, the driver says") {
  Cuda cuda;
  auto& runtime = cuda.runtime();
  const auto device = cuda.tensor(5000);
  const auto* const data = device.storage().data();
  runtime.require_memory(Cuda::kDevice, data, 5000);
  runtime.require_memory(Cuda::kDevice, data + 100, 1);
  runtime.require_memory(Cuda::kDevice, nullptr, 0);
  const auto refused = [&](const void* address, std::uint64_t bytes, const std::string& why) {
    CHECK_THROWS_WITH(runtime.require_memory(Cuda::kDevice, address, bytes), contains_text(why));
    CHECK_THROWS_AS(runtime.require_memory(Cuda::kDevice, address, bytes), InvalidArgument);
  };
  const HostPages host(4096);
  refused(host.data(), 10, "page-locked host memory");
  int local = 0;
  refused(&local, sizeof(local), "nothing that the driver knows");
  if (Cuda::real()) return;
  refused(data, 1U << 20U, "byte 1048575");
  const auto second = cuda.tensor(10, 0, 0, {DeviceType::kCuda, 1});
  refused(second.storage().data(), 10, "memory of cuda:1");
  runtime.require_memory({DeviceType::kCuda, 1}, second.storage().data(), 10);
  CHECK_THROWS_WITH(runtime.require_memory({DeviceType::kCuda, 7}, data, 1),
                    contains_text("no device cuda:7"));
}

TEST_CASE("cuda: memory of a device belongs to its last handle") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto before = Cuda::fake().device_bytes();
  auto memory = cuda.runtime().allocate(Cuda::kDevice, 1 << 20U);
  CHECK(Cuda::fake().device_bytes() == before + (1 << 20U));
  memory.reset();
  CHECK(Cuda::fake().device_bytes() == before);
  CHECK(cuda.runtime().allocate(Cuda::kDevice, 0) == nullptr);
  Cuda::fake().fail_function("cuMemAlloc", 1, 2);
  CHECK_THROWS_AS(cuda.runtime().allocate(Cuda::kDevice, 10), OutOfMemory);
}

TEST_CASE("cuda: a stream that is being captured is refused before any call, and left alone") {
  Cuda cuda;
  auto& runtime = cuda.runtime();
  const auto stream = cuda.open_stream();
  runtime.require_not_capturing({Cuda::kDevice, stream});
  cuda.begin_capture(stream);
  CHECK_THROWS_WITH(runtime.require_not_capturing({Cuda::kDevice, stream}),
                    contains_text("captured into a graph"));
  // Other threads' work, on streams of their own, while this one captures.
  std::thread([&] {
    HostPages host(4096);
    const auto memory = runtime.allocate(Cuda::kDevice, 4096);
    auto ours = runtime.open_stream(Cuda::kDevice);
    ours.copy(CopyDirection::kToHost, std::vector<DeviceCopy>{{host.data(), memory.get(), 4096}});
    ours.record().wait();
  }).join();
  CHECK(cuda.end_capture(stream));
  runtime.require_not_capturing({Cuda::kDevice, stream});
  cuda.close_stream(stream);
}

TEST_CASE("cuda: what a device still uses is kept until it is done") {
  Cuda cuda;
  if (Cuda::real()) return;
  auto& runtime = cuda.runtime();
  HostPages host(4096);
  const auto tensor = cuda.tensor(4096, 5);
  auto stream = runtime.open_stream(Cuda::kDevice);
  Cuda::fake().hold(true);
  stream.copy(CopyDirection::kToHost,
              std::vector<DeviceCopy>{{host.data(), tensor.storage().data(), 4096}});
  auto what = std::make_shared<int>(1);
  const std::weak_ptr<int> kept = what;
  runtime.keep(stream.record(), std::move(what));
  CHECK(runtime.kept() == 1);
  CHECK_FALSE(kept.expired());
  Cuda::fake().hold(false);
  cuda.wait_until_nothing_is_kept();
  CHECK(kept.expired());
  CHECK(host.data()[4095] == std::byte{5});
}

TEST_CASE("cuda: a forked child may use nothing, and undoes nothing") {
  Cuda cuda;
  auto& runtime = cuda.runtime();
  auto host = std::make_unique<HostPages>(4096);
  auto stream = std::make_unique<DeviceStream>(runtime.open_stream(Cuda::kDevice));
  auto memory = runtime.allocate(Cuda::kDevice, 100);
  const auto event = stream->record();
  const pid_t child = ::fork();
  if (child == 0) {
    int wrong = 0;
    try {
      static_cast<void>(runtime.open_stream(Cuda::kDevice));
      wrong |= 1;
    } catch (const InvalidState&) {
    }
    try {
      static_cast<void>(event.done());
      wrong |= 2;
    } catch (const InvalidState&) {
    }
    const auto calls = Cuda::real() ? 0 : Cuda::fake().calls(nullptr);
    host.reset();
    stream.reset();
    memory.reset();
    if (!Cuda::real() && Cuda::fake().calls(nullptr) != calls) wrong |= 4;
    ::_exit(wrong);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  event.wait();
  CHECK(runtime.is_pinned(host->all()));
}

TEST_CASE("cuda: why there is no device is told apart") {
  Cuda cuda;
  if (Cuda::real()) return;
  auto support = device_support(DeviceType::kCuda);
  CHECK(support.problem == DeviceProblem::kNone);
  CHECK(support.driver == "CUDA 13.0");
  REQUIRE(support.devices.size() == 2);
  CHECK(support.devices[1].name == "Fake GPU 1");
  CHECK(support.devices[1].architecture == "9.0");
  CHECK(support.devices[1].device == Device{DeviceType::kCuda, 1});
  const auto problem = [&](int init, int version, int devices) {
    Cuda::fake().set_driver(init, version, devices);
    support = device_support(DeviceType::kCuda);
    CHECK_FALSE(support.detail.empty());
    return support.problem;
  };
  CHECK(problem(100, 13000, 0) == DeviceProblem::kNoDevice);
  CHECK(problem(0, 13000, 0) == DeviceProblem::kNoDevice);
  CHECK(problem(0, 11080, 1) == DeviceProblem::kDriverTooOld);
  CHECK_THAT(support.detail, contains_text("11.8"));
  CHECK(problem(304, 13000, 1) == DeviceProblem::kNoPermission);
  CHECK(problem(800, 13000, 1) == DeviceProblem::kNoPermission);
  CHECK(problem(802, 13000, 1) == DeviceProblem::kNotReady);
  CHECK(problem(803, 13000, 1) == DeviceProblem::kNotReady);
  CHECK(problem(34, 13000, 1) == DeviceProblem::kNoDriver);
  CHECK(problem(999, 13000, 1) == DeviceProblem::kFailed);
  // Looking opened nothing: the devices that were open still are.
  Cuda::fake().set_driver(0, 12080, 2);
  CHECK(device_support(DeviceType::kCuda).driver == "CUDA 12.8");
}
