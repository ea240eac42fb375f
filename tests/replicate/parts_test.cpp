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
    loop.post_at(Deadline::after(milliseconds(-5)), [&] { ran.push_back(0); });
    loop.post_at(Deadline::never(), [&] { ran.push_back(99); });
    for (int i = 1; i <= 3; ++i) {
      loop.post([&, i] {
        ran.push_back(i);
        if (i == 1) throw std::runtime_error("one");
        if (i == 2) throw 2;
        loop.post_at(Deadline::after(milliseconds(20)), [&] {
          ran.push_back(9);
          late.set_value();
        });
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

TEST_CASE("the loop says whether its present task takes long") {
  using std::chrono::hours;
  Loop loop([](std::exception_ptr) {});
  CHECK(loop.answers_within(milliseconds(0)));
  std::promise<void> begun;
  std::promise<void> end;
  loop.post([&] {
    begun.set_value();
    end.get_future().wait();
  });
  begun.get_future().wait();
  CHECK(loop.answers_within(hours(1)));
  std::this_thread::sleep_for(milliseconds(2));
  CHECK_FALSE(loop.answers_within(milliseconds(1)));
  end.set_value();
  loop.run([] {});
  loop.stop();
  CHECK(loop.answers_within(milliseconds(0)));
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

TEST_CASE("a recovery that failed throws the same error whichever the trainer sees first") {
  TrainerGate gate;
  gate.open();
  gate.lose({ErrorKind::kStructureMismatch, 1, "a: shape", "a"});  // and its command comes later
  try {
    (void)gate.next_command({milliseconds(20'000), [](std::uint32_t) {}});
    FAIL("no error");
  } catch (const meshstage::StructureMismatch& e) {
    CHECK(e.path() == "a");
    CHECK(e.rank() == 1);
  }
}

TEST_CASE("the gate says what the trainer may do, and a loss ends every wait") {
  TrainerGate gate;
  gate.open();
  // A wait goes on, and is told each time that its length has passed.
  std::vector<std::uint32_t> told;
  const Patience patience{milliseconds(5), [&](std::uint32_t times) {
                            told.push_back(times);
                            if (told.size() == 3) gate.leave_step();
                          }};
  CHECK_THROWS_AS(gate.enter_step(WhenBusy::kWait, patience), InvalidState);  // not recovered
  gate.recovered();
  CHECK(gate.enter_step(WhenBusy::kWait, patience));
  CHECK_FALSE(gate.enter_step(WhenBusy::kSkip, patience));
  CHECK(gate.stats().skipped == 1);
  CHECK(gate.enter_step(WhenBusy::kWait, patience));
  CHECK(told == std::vector<std::uint32_t>{1, 2, 3});
  CHECK(gate.count_wait() == 1);  // counted anew for the next step
  const Patience long_one{std::chrono::seconds(20), {}};
  std::thread loses([&] {
    gate.lose({ErrorKind::kPeerLost, 2, "rank 2 died"});
    gate.lose({ErrorKind::kPeerLost, 1, "the second loss is not told"});
  });
  try {
    (void)gate.wait_idle(long_one);
    FAIL("nothing was lost");
  } catch (const PeerLost& e) {
    CHECK(e.rank() == 2);
  }
  loses.join();
  CHECK_THROWS_AS(gate.enter_step(WhenBusy::kSkip, long_one), PeerLost);
  CHECK_THROWS_AS(gate.throw_if_lost(), PeerLost);
  gate.open();
  CHECK_NOTHROW(gate.throw_if_lost());
}

TEST_CASE("finish() waits for the disk as long as one patience") {
  TrainerGate gate;
  gate.open();
  gate.recovered();
  gate.persisting_begins();
  CHECK_THROWS_AS(gate.wait_idle({milliseconds(5), {}}), Timeout);
  gate.persisting_ends();
  CHECK_FALSE(gate.wait_idle({milliseconds(5), {}}));
}

TEST_CASE("recover() waits for its command, and each time that a length has passed it says so") {
  TrainerGate gate;
  gate.open();
  gate.check_recover();
  std::uint32_t told = 0;
  const auto told_twice = [&](std::uint32_t times) {
    told = times;
    RecoverCommand restore;
    restore.kind = RecoverCommand::Kind::kRestore;
    if (times == 2) gate.command(restore);
  };
  CHECK(gate.next_command({milliseconds(5), told_twice}).kind == RecoverCommand::Kind::kRestore);
  CHECK(told == 2);
}
