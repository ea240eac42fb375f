#include <signal.h>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/async/work.hpp>
#include <meshstage/core/async/worker.hpp>
#include <stdexcept>
#include <stop_token>
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

TEST_CASE("no duration is too long for a deadline, and no sum overflows") {
  using std::chrono::milliseconds;
  REQUIRE(Deadline::after(milliseconds::max()).is_never());
  REQUIRE_FALSE(Deadline::after(milliseconds::max()).expired());
  REQUIRE(Deadline::after(milliseconds::min()).expired());
  REQUIRE(Deadline::after(milliseconds::min()).remaining() == 0ms);
  REQUIRE(Deadline::after(1h).plus(milliseconds::max()).is_never());
  REQUIRE(Deadline::after(1h).plus(Deadline::Clock::duration::max()).is_never());
  REQUIRE(Deadline::never().plus(-1h).is_never());
  REQUIRE(Deadline::at(Deadline::Clock::time_point::min()).plus(-1h).expired());
  REQUIRE(Deadline::at(Deadline::Clock::time_point::min()).remaining() == 0ms);
  REQUIRE(Deadline::length(milliseconds::max()) == Deadline::Clock::duration::max());
  REQUIRE(Deadline::length(milliseconds::min()) == Deadline::Clock::duration::min());
  REQUIRE(Deadline::length(1500ms) == 1500ms);
  REQUIRE(Deadline::length(std::chrono::duration<double>(1e300)) ==
          Deadline::Clock::duration::max());
  const auto soon = Deadline::after(1h);
  REQUIRE(soon.plus(1s).time() - soon.time() == 1s);
}

TEST_CASE("a wait without an end, and one whose end has passed") {
  meshstage::Mutex mutex;
  meshstage::CondVar changed;
  meshstage::MutexLock lock(mutex);
  REQUIRE_FALSE(changed.wait_until(lock, Deadline::after(-1s), [] { return false; }));
  REQUIRE(changed.wait_until(lock, Deadline::never(), [] { return true; }));
  std::stop_source stop;
  stop.request_stop();
  REQUIRE_FALSE(
      changed.wait_until(lock, stop.get_token(), Deadline::never(), [] { return false; }));
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

TEST_CASE("what a task throws goes to the worker's handler, and the next task runs") {
  std::vector<std::string> failures;
  const auto handler = [&failures](std::exception_ptr failure) {
    try {
      std::rethrow_exception(failure);
    } catch (const meshstage::Error& e) {
      failures.emplace_back(e.what());
    } catch (int number) {
      failures.push_back(std::to_string(number));
    }
  };
  bool ran = false;
  {
    meshstage::Worker worker("test", handler);
    worker.post([] { throw meshstage::IoError("no disk"); });
    worker.post([] { throw 7; });
    worker.post([&ran] { ran = true; });
    worker.drain();
  }
  REQUIRE(ran);
  REQUIRE(failures == std::vector<std::string>{"i/o error: no disk", "7"});
}

TEST_CASE("neither a worker without a handler nor a handler that throws ends the program") {
  bool ran = false;
  meshstage::Worker quiet("quiet");
  quiet.post([] { throw std::runtime_error("written to standard error"); });
  quiet.post([&ran] { ran = true; });
  quiet.drain();
  REQUIRE(ran);
  meshstage::Worker loud("loud", [](std::exception_ptr) { throw 1; });
  loud.post([] { throw 2; });
  loud.drain();
}

TEST_CASE("what the body of a thread throws goes to its handler") {
  bool told = false;
  meshstage::Thread thread("test", [] { throw 1; }, [&told](std::exception_ptr) { told = true; });
  REQUIRE(thread.joinable());
  thread.join();
  REQUIRE_FALSE(thread.joinable());
  REQUIRE(told);
}

TEST_CASE("a thread leaves the program's signals to the program") {
  sigset_t mask;
  sigemptyset(&mask);
  meshstage::Thread thread("test", [&mask] { ::pthread_sigmask(SIG_SETMASK, nullptr, &mask); });
  thread.join();
  REQUIRE(sigismember(&mask, SIGTERM) == 1);
  REQUIRE(sigismember(&mask, SIGSEGV) == 0);
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  REQUIRE(sigismember(&mask, SIGTERM) == 0);
}

TEST_CASE("errors have one type for each kind and keep their fields") {
  using meshstage::ErrorKind;
  REQUIRE_THROWS_AS(meshstage::throw_error(ErrorKind::kTimeout, "x", 3), meshstage::Timeout);
  REQUIRE_THROWS_AS(meshstage::throw_error(ErrorKind::kUnrecoverable, "x"),
                    meshstage::Unrecoverable);
  // Whoever takes no care of being fenced takes it for a wrong state, and never for a lost peer.
  REQUIRE_THROWS_AS(meshstage::throw_error(ErrorKind::kFenced, "x"), meshstage::Fenced);
  REQUIRE_THROWS_AS(meshstage::throw_error(ErrorKind::kFenced, "x"), meshstage::InvalidState);
  const meshstage::Fenced fenced("rank 2 was replaced");
  REQUIRE(fenced.kind() == ErrorKind::kFenced);
  REQUIRE(std::string(fenced.what()) == "fenced: rank 2 was replaced");
  REQUIRE(fenced.message() == "rank 2 was replaced");
  try {
    meshstage::throw_errno("open", "/nowhere", 28);
    FAIL("returned");
  } catch (const meshstage::IoError& e) {
    REQUIRE(std::string(e.what()).find("/nowhere: No space left on device (errno 28)") !=
            std::string::npos);
    REQUIRE(e.path() == "/nowhere");
  }
}
