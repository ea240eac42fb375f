// Every call to the driver fails in turn; so does page-locking; nothing is broken by it.
#include <algorithm>

#include <meshstage/core/error/error.hpp>

#include "tests/device/cuda_support.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using test::Cuda;
using test::HostPages;

namespace {

// Something of everything; true if it came to its end.
bool use_everything(Cuda& cuda, const Tensor& tensor, StreamHandle trainer) {
  auto& runtime = cuda.runtime();
  try {
    HostPages host(tensor.storage().nbytes());
    const auto memory = runtime.allocate(Cuda::kDevice, 4096);
    runtime.require_memory(Cuda::kDevice, memory.get(), 4096);
    runtime.require_not_capturing({Cuda::kDevice, trainer});
    auto stream = runtime.open_stream(Cuda::kDevice);
    stream.wait(runtime.record({Cuda::kDevice, trainer}));
    const std::vector<DeviceCopy> halves{
        {host.data(), tensor.storage().data(), 100},
        {host.data() + 100, tensor.storage().data() + 100, tensor.storage().nbytes() - 100}};
    // What is issued is waited for on every way out, before the memory goes.
    std::exception_ptr error;
    try {
      stream.copy(CopyDirection::kToHost, halves);
      stream.gather(CopyDirection::kToHost, halves);
      const std::vector<DeviceRun> runs{{0, tensor.storage().data(), tensor.storage().nbytes()}};
      static_cast<void>(
          stream.digest(std::vector<DeviceBlock>{{tensor.storage().nbytes(), 1}}, runs));
      runtime.hold({Cuda::kDevice, trainer}, stream.record());
    } catch (const Error&) {
      error = std::current_exception();
    }
    cuda.fake().fail_call(0, 0);
    stream.record().wait();
    if (error) std::rethrow_exception(error);
    CHECK(std::all_of(host.data(), host.data() + tensor.storage().nbytes(),
                      [](std::byte b) { return b == std::byte{6}; }));
    return true;
  } catch (const Error& e) {
    CHECK_THAT(e.what(), contains_text("cuda:0: cu"));
    UNSCOPED_INFO(e.what());
    return false;
  }
}

}  // namespace

TEST_CASE("cuda: every call fails in turn, with the driver's words, and the next use works") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto tensor = cuda.tensor(5000, 6);
  const auto trainer = cuda.open_stream();
  REQUIRE(use_everything(cuda, tensor, trainer));
  const auto streams = Cuda::fake().streams();
  std::uint64_t failures = 0;
  for (std::uint64_t n = 1; n < 200; ++n) {
    INFO("call " << n);
    const auto before = Cuda::fake().calls(nullptr);
    Cuda::fake().fail_call(n, n % 2 == 0 ? 2 : 700);
    const bool whole = use_everything(cuda, tensor, trainer);
    failures += whole ? 0 : 1;
    Cuda::fake().fail_call(0, 0);
    REQUIRE(use_everything(cuda, tensor, trainer));
    if (whole && n > Cuda::fake().calls(nullptr) - before) break;
  }
  CHECK(failures > 15);
  // A stream whose closing failed is all that may be left of each.
  CHECK(Cuda::fake().streams() <= streams + 2);
  cuda.close_stream(trainer);
}
