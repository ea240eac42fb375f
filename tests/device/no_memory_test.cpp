// Memory that a device may still use, given up where there is no memory to remember it. A program
// of its own: it replaces operator new.
#include <pthread.h>

#include <array>
#include <memory>
#include <utility>

#include <meshstage/core/device/runtime.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/failing_new.hpp"

using namespace meshstage;

TEST_CASE("whichever allocation of keep() fails, it lets go of what is done") {
  auto& runtime = DeviceRuntime::of(DeviceType::kCpu);
  auto stream = runtime.open_stream(kCpu);
  std::array<char, 16> own_name{};
  REQUIRE(pthread_getname_np(pthread_self(), own_name.data(), own_name.size()) == 0);
  int failed = 0;
  for (int nth = 1;; ++nth) {
    auto what = std::make_shared<const int>(7);
    const std::weak_ptr<const void> watched = what;
    const auto event = stream.record();
    test::fail_allocation(own_name.data(), nth);
    runtime.keep(event, std::move(what));  // a terminate would end the program
    if (!test::allocation_failed()) break;
    ++failed;
    CHECK(watched.expired());
  }
  CHECK(failed > 0);
  CHECK(runtime.kept() == 0);
}
