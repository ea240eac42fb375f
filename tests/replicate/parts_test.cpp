// The engine's small parts, each by itself.
#include <future>
#include <stdexcept>
#include <thread>
#include <vector>

#include <meshstage/core/replicate/asks.hpp>
#include <meshstage/core/replicate/gate.hpp>
#include <meshstage/core/replicate/loop.hpp>
#include <meshstage/core/replicate/report.hpp>
#include <meshstage/core/replicate/task_scope.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::replicate;
using std::chrono::milliseconds;

TEST_CASE("the loop runs tasks in order, timed ones in time, and outlives what they throw") {
  std::vector<int> ran;
  std::vector<std::string> failures;
  Loop loop([&](std::exception_ptr failure) { failures.push_back(text_of(failure)); });
  std::promise<void> late;
  loop.run([&] {
    loop.post_at(Deadline::after(milliseconds(20)), [&] {
      ran.push_back(9);
      late.set_value();
    });
    loop.post_at(Deadline::after(milliseconds(-5)), [&] { ran.push_back(0); });
    loop.post_at(Deadline::never(), [&] { ran.push_back(99); });
    for (int i = 1; i <= 3; ++i) {
      loop.post([&, i] {
        ran.push_back(i);
        if (i == 1) throw std::runtime_error("one");
        if (i == 2) throw 2;
      });
    }
  });
  late.get_future().wait();
  loop.fail(std::make_exception_ptr(std::runtime_error("from outside")));
  loop.run([] { throw std::runtime_error("from run()"); });
  loop.run([&] {
    CHECK(ran == std::vector<int>{0, 1, 2, 3, 9});
    CHECK(failures == std::vector<std::string>{"one", "an exception of an unknown type",
                                               "from outside", "from run()"});
  });
  loop.stop();
  loop.post([&] { ran.push_back(100); });
  loop.run([&] { ran.push_back(100); });  // does not wait for ever
  CHECK(ran.size() == 5);
}

TEST_CASE("a scope is closed when the last of its tasks, and what they started, has ended") {
  TaskScope scope;
  auto first = scope.enter();
  auto copy = first;
  first.reset();
  CHECK_FALSE(scope.close(Deadline::after(milliseconds(5))));
  CHECK(scope.enter() == nullptr);  // no new task, though one is left
  std::thread ends([task = std::move(copy)]() mutable { task.reset(); });
  CHECK(scope.close(Deadline::after(std::chrono::seconds(10))));
  ends.join();
  scope.open();
  CHECK(scope.enter() != nullptr);
}

TEST_CASE("an ask ends when its stream begins, or with its round, and never before") {
  using exchange::Content;
  const auto id = [](std::uint64_t step) { return ImageId{1, step}; };
  const auto shape = [](std::uint64_t bytes) { return transfer::Shape{bytes, 0, 4096}; };
  Asks asks;
  asks.add(1, 1, Content::kImage, id(1), shape(10));
  CHECK_FALSE(asks.take(2, 1, Content::kImage, id(1)));
  CHECK_FALSE(asks.take(1, 1, Content::kLent, id(1)));
  CHECK_FALSE(asks.take(1, 1, Content::kImage, id(2)));
  CHECK(asks.take(1, 1, Content::kImage, id(1)) == shape(10));
  CHECK_FALSE(asks.take(1, 1, Content::kImage, id(1)));  // once

  // A step fails unsent and the next one is asked for: the stream of either may come.
  asks.add(1, 1, Content::kImage, id(2), shape(20));
  asks.add(1, 1, Content::kImage, id(3), shape(30));
  CHECK(asks.take(1, 1, Content::kImage, id(2)) == shape(20));
  CHECK(asks.take(1, 1, Content::kImage, id(3)) == shape(30));
  // A later stream ends those before it.
  asks.add(1, 1, Content::kImage, id(4), shape(40));
  asks.add(1, 1, Content::kImage, id(5), shape(50));
  CHECK(asks.take(1, 1, Content::kImage, id(5)) == shape(50));
  CHECK(asks.size() == 0);
  // However many steps fail unsent, nothing piles up, and another owner's ask stays.
  asks.add(0, 0, Content::kImage, id(1), shape(7));
  for (std::uint64_t step = 6; step < 1000; ++step) {
    asks.add(1, 1, Content::kImage, id(step), shape(step));
  }
  CHECK(asks.size() == 3);
  CHECK(asks.take(0, 0, Content::kImage, id(1)) == shape(7));
  CHECK(asks.take(1, 1, Content::kImage, id(998)) == shape(998));
}

TEST_CASE("the gate says what the trainer may do, and a loss ends every wait") {
  TrainerGate gate;
  gate.open();
  const auto soon = milliseconds(5);
  CHECK_THROWS_AS(gate.enter_step(1, WhenBusy::kWait, soon), InvalidState);  // not recovered
  gate.recovered();
  CHECK(gate.enter_step(1, WhenBusy::kWait, soon));
  CHECK_FALSE(gate.enter_step(2, WhenBusy::kSkip, soon));
  CHECK(gate.stats().skipped == 1);
  CHECK_THROWS_AS(gate.enter_step(2, WhenBusy::kWait, soon), PeerSilent);
  CHECK_THROWS_AS(gate.wait_idle(Deadline::after(soon)), Timeout);
  std::thread loses([&] {
    gate.lose({ErrorKind::kPeerLost, 2, "rank 2 died"});
    gate.lose({ErrorKind::kPeerLost, 1, "the second loss is not told"});
  });
  try {
    (void)gate.wait_idle(Deadline::after(std::chrono::seconds(20)));
    FAIL("nothing was lost");
  } catch (const PeerLost& e) {
    CHECK(e.rank() == 2);
  }
  loses.join();
  CHECK_THROWS_AS(gate.enter_step(3, WhenBusy::kSkip, soon), PeerLost);
  CHECK_THROWS_AS(gate.throw_if_lost(), PeerLost);
  gate.open();
  CHECK_NOTHROW(gate.throw_if_lost());
}

TEST_CASE("a recovery that the trainer gave up is over until the next generation") {
  TrainerGate gate;
  gate.open();
  gate.check_recover();
  CHECK_THROWS_AS(gate.next_command(Deadline::after(milliseconds(5)), milliseconds(5)), PeerSilent);
  RecoverCommand late;
  late.kind = RecoverCommand::Kind::kRestore;
  gate.command(late);
  CHECK_THROWS_AS(gate.check_recover(), PeerSilent);
  CHECK_THROWS_AS(gate.throw_if_lost(), PeerSilent);
  gate.open();
  gate.check_recover();
  gate.command(late);
  CHECK(gate.next_command(Deadline::never(), milliseconds(5)).kind ==
        RecoverCommand::Kind::kRestore);
}
