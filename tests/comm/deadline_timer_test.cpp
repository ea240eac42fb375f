// The thread that keeps the deadlines of waits in Gloo.
#include <chrono>
#include <future>
#include <new>

#include <meshstage/core/comm/gloo/deadline_timer_impl.hpp>

#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
using meshstage::Deadline;
using meshstage::DeadlineTimer;

TEST_CASE("a deadline whose callback throws keeps no later deadline from coming") {
  std::promise<void> later;
  DeadlineTimer timer;
  (void)timer.arm(Deadline::after(0ms), [] { throw std::bad_alloc(); });
  (void)timer.arm(Deadline::after(5ms), [&later] { later.set_value(); });
  CHECK(later.get_future().wait_for(10s) == std::future_status::ready);
}
