// Memory that a device still uses, given up where there is no memory to remember it. A program of
// its own: it replaces operator new.
#include <pthread.h>

#include <chrono>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "tests/support/catch.hpp"
#include "tests/support/cuda.hpp"
#include "tests/support/failing_new.hpp"

using namespace meshstage;
using test::Cuda;

namespace {

constexpr const char* kVictim = "victim";

/// Runs `call` on a thread whose first allocation fails.
template <class Call>
std::future<void> without_memory(Call call) {
  std::packaged_task<void()> task([call = std::move(call)]() mutable {
    pthread_setname_np(pthread_self(), kVictim);
    test::fail_allocation(kVictim, 1);
    call();
  });
  auto done = task.get_future();
  std::thread(std::move(task)).detach();
  return done;
}

}  // namespace

TEST_CASE("keep() without memory waits until the device is done, and lets go") {
  Cuda cuda;
  if (Cuda::real()) return;
  auto& runtime = cuda.runtime();
  auto stream = runtime.open_stream(Cuda::kDevice);
  Cuda::fake().hold(true);
  auto what = std::make_shared<const int>(7);
  const std::weak_ptr<const void> watched = what;
  auto done = without_memory([&runtime, event = stream.record(), kept = std::move(what)]() mutable {
    runtime.keep(event, std::move(kept));  // a terminate would end the program
  });
  CHECK(done.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
  CHECK_FALSE(watched.expired());
  Cuda::fake().hold(false);
  done.get();
  CHECK(test::allocation_failed());
  CHECK(watched.expired());
  CHECK(runtime.kept() == 0);
}

TEST_CASE("keep_for_good() without memory keeps it all the same") {
  Cuda cuda;
  if (Cuda::real()) return;
  static const auto what = std::make_shared<const int>(7);  // its second handle is leaked
  auto& runtime = cuda.runtime();
  without_memory([&runtime, kept = what]() mutable {
    runtime.keep_for_good(std::move(kept));
  }).get();
  CHECK(test::allocation_failed());
  CHECK(what.use_count() == 2);
}
