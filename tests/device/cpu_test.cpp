// The CPU as a device: what every device does, seen where nothing can be late.
#include <cstring>
#include <vector>

#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

TEST_CASE("the CPU is a device that has done what was issued when the call returns") {
  auto& runtime = DeviceRuntime::of(DeviceType::kCpu);
  CHECK(device_support(DeviceType::kCpu).devices.size() == 1);
  const auto memory = runtime.allocate(kCpu, 300);
  std::vector<std::byte> host(300, std::byte{7}), back(300);
  auto stream = runtime.open_stream(kCpu);
  stream.wait(runtime.record({kCpu}));
  const std::vector<DeviceCopy> there{{memory.get(), host.data(), 100},
                                      {memory.get() + 100, host.data() + 100, 200}};
  const std::vector<DeviceCopy> here{{back.data(), memory.get(), 300}};
  SECTION("by copies") {
    stream.copy(CopyDirection::kToDevice, there);
    stream.copy(CopyDirection::kToHost, here);
  }
  SECTION("by a kernel, or what stands in for it") {
    stream.gather(CopyDirection::kToDevice, there);
    stream.gather(CopyDirection::kToHost, here);
  }
  const auto event = stream.record();
  CHECK(event.done());
  event.wait();
  CHECK(back == host);
  CHECK_THROWS_AS(runtime.open_stream({DeviceType::kCpu, 1}), InvalidArgument);
  CHECK_THROWS_AS(runtime.open_stream({DeviceType::kCuda, 0}), InvalidArgument);
}
