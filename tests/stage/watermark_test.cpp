#include <thread>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/watermark.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

TEST_CASE("a watermark only rises, and a wait returns how far it is") {
  Watermark w;
  w.advance(100);
  w.advance(50);
  CHECK(w.bytes() == 100);
  CHECK(w.wait(60) == 100);
  CHECK_THROWS_AS(w.wait(101, Deadline::after(std::chrono::milliseconds(0))), Timeout);
  w.reset();
  CHECK(w.bytes() == 0);
}

TEST_CASE("a waiter sees what was written before the watermark rose") {
  Watermark w;
  std::vector<int> data(1000, 0);
  std::thread writer([&] {
    for (std::size_t i = 0; i < data.size(); ++i) {
      data[i] = static_cast<int>(i) + 1;
      w.advance(i + 1);
    }
  });
  bool right = true;
  for (std::size_t i = 0; i < data.size(); ++i) {
    w.wait(i + 1);
    right &= data[i] == static_cast<int>(i) + 1;
  }
  writer.join();
  CHECK(right);
}

TEST_CASE("a failure ends waits for more with its cause, not waits for what is there") {
  Watermark w;
  w.advance(10);
  std::exception_ptr caught;
  std::thread waiter([&] {
    try {
      w.wait(20);
    } catch (...) {
      caught = std::current_exception();
    }
  });
  w.fail(std::make_exception_ptr(PeerLost("rank 3 died")));
  w.fail(std::make_exception_ptr(Timeout("later")));
  waiter.join();
  CHECK_THROWS_AS(std::rethrow_exception(caught), PeerLost);
  CHECK(w.wait(10) == 10);
  CHECK(w.failed());
  CHECK_THROWS_AS(w.throw_if_failed(), PeerLost);
}
