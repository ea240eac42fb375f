#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/work.hpp>
#include <meshstage/core/async/worker.hpp>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
using meshstage::Deadline;
using meshstage::Promise;
using meshstage::Work;

TEST_CASE("a deadline counts down and clamps") {
  REQUIRE(Deadline::after(-1s).expired());
  REQUIRE(Deadline::after(-1s).remaining() == 0ms);
  REQUIRE_FALSE(Deadline::never().expired());
  REQUIRE(Deadline::after(1h).remaining() > 59min);
  REQUIRE(Deadline::after(std::chrono::hours::max()).is_never());
  REQUIRE(Deadline::never().earlier(Deadline::after(1h)).remaining() <= 1h);
}

TEST_CASE("a value crosses threads once") {
  Promise<std::string> promise;
  Work<std::string> work = promise.work();
  REQUIRE_FALSE(work.ready());
  meshstage::Worker worker("test");
  worker.post([promise]() mutable { promise.set_value("staged"); });
  REQUIRE(work.get() == "staged");
  REQUIRE_FALSE(work.valid());
  REQUIRE_THROWS_AS(work.get(), meshstage::InvalidState);
}

TEST_CASE("an error is delivered once, with its type") {
  Promise<void> promise;
  Work<void> work = promise.work();
  promise.set_error(std::make_exception_ptr(meshstage::make_error<meshstage::PeerLost>("died", 2)));
  REQUIRE_FALSE(promise.set_value());
  try {
    work.wait();
    FAIL("wait() returned");
  } catch (const meshstage::PeerLost& e) {
    REQUIRE(e.rank() == 2);
    REQUIRE(std::string(e.what()) == "peer lost: died");
  }
  REQUIRE_NOTHROW(work.wait());
}

TEST_CASE("waiting ends at the deadline and the result still arrives") {
  Promise<int> promise;
  Work<int> work = promise.work();
  REQUIRE_THROWS_AS(work.wait(Deadline::after(1ms)), meshstage::Timeout);
  promise.set_value(7);
  REQUIRE(work.get() == 7);
}

TEST_CASE("a dropped promise is an error, a dropped work a cancellation") {
  Work<int> orphan;
  {
    Promise<int> promise;
    orphan = promise.work();
  }
  REQUIRE_THROWS_AS(orphan.get(), meshstage::Cancelled);

  Promise<int> promise;
  int cancelled = 0;
  {
    Work<int> work = promise.work();
    promise.on_cancel([&] { ++cancelled; });
    work.cancel();
    work.cancel();
  }
  REQUIRE(cancelled == 1);
}

TEST_CASE("a worker keeps order, drains, and drops what had not started") {
  std::vector<int> order;
  {
    meshstage::Worker worker("test");
    for (int i = 0; i < 100; ++i) worker.post([&order, i] { order.push_back(i); });
    worker.drain();
    REQUIRE(order.size() == 100);
    worker.stop();
    worker.post([&order] { order.push_back(-1); });
  }
  for (int i = 0; i < 100; ++i) REQUIRE(order[static_cast<std::size_t>(i)] == i);
  REQUIRE(order.size() == 100);
}

TEST_CASE("errors have one type for each kind and keep their fields") {
  using meshstage::ErrorKind;
  REQUIRE_THROWS_AS(meshstage::throw_error(ErrorKind::kTimeout, "x", 3), meshstage::Timeout);
  REQUIRE_THROWS_AS(meshstage::throw_error(ErrorKind::kUnrecoverable, "x"),
                    meshstage::Unrecoverable);
  try {
    meshstage::throw_errno("open", "/nowhere", 28);
    FAIL("returned");
  } catch (const meshstage::IoError& e) {
    REQUIRE(std::string(e.what()).find("/nowhere: No space left on device (errno 28)") !=
            std::string::npos);
    REQUIRE(e.path() == "/nowhere");
  }
}
