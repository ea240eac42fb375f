// Memory that a device may still use, given up where there is no memory to remember it. A program
// of its own: it replaces operator new.
#include <memory>

#include <meshstage/core/device/runtime.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/failing_new.hpp"

using namespace meshstage;

TEST_CASE("keep() without memory waits for the event, and lets go") {
  auto& runtime = DeviceRuntime::of(DeviceType::kCpu);
  auto stream = runtime.open_stream(kCpu);
  int failed = 0;
  for (int nth = 1;; ++nth) {
    auto what = std::make_shared<const int>(7);
    const std::weak_ptr<const void> watched = what;
    const auto event = stream.record();
    char name[16] = {};
    REQUIRE(pthread_getname_np(pthread_self(), name, sizeof name) == 0);
    test::fail_allocation(name, nth);
    runtime.keep(event, std::move(what));  // a terminate would end the program
    if (!test::allocation_failed()) break;
    ++failed;
    CHECK(watched.expired());
  }
  CHECK(failed > 0);
  CHECK(runtime.kept() == 0);
}
