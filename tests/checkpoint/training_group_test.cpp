// The group that a trainer gets: how long its waits last.
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/checkpoint/training_group_impl.hpp>
#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
namespace ms = meshstage;

namespace {

using ms::replicate::CollectiveWaits;

/// How a transfer was waited for.
struct Waits {
  std::vector<ms::Deadline> until;
};

/// What a transfer does each time that it is waited for until `deadline`: true if it is complete.
using DoneBy = std::function<bool(ms::Deadline)>;

class PlayedTransfer final : public ms::Transfer {
 public:
  PlayedTransfer(Waits& waits, const DoneBy& done_by) : waits_(waits), done_by_(done_by) {}
  void wait(ms::Deadline deadline) override {
    if (!done_by(deadline)) throw ms::make_error<ms::PeerSilent>("rank 1: not done", 1);
  }
  [[nodiscard]] bool done_by(ms::Deadline deadline) override {
    waits_.until.push_back(deadline);
    return done_by_(deadline);
  }

 private:
  Waits& waits_;
  const DoneBy& done_by_;
};

/// Collectives of the backend's own, of which the barrier notes its deadline.
class NotedCollectives final : public ms::collectives::Own {
 public:
  explicit NotedCollectives(Waits& waits) : waits_(waits) {}
  void barrier(ms::Deadline deadline) override { waits_.until.push_back(deadline); }
  void broadcast(std::span<std::byte>, int, ms::Deadline) override {}
  void all_gather(std::span<const std::byte>, std::span<std::byte>, ms::Deadline) override {}
  void all_reduce(std::span<std::byte>, ms::collectives::Element, ms::collectives::ReduceOp,
                  ms::Deadline) override {}
  void reduce_scatter(std::span<const std::byte>, std::span<std::byte>, ms::collectives::Element,
                      ms::collectives::ReduceOp, ms::Deadline) override {}

 private:
  Waits& waits_;
};

class NotedGroup final : public ms::ProcessGroup {
 public:
  explicit NotedGroup(Waits& waits, ms::collectives::Own* own = nullptr)
      : waits_(waits), own_(own) {}
  [[nodiscard]] ms::collectives::Own* own_collectives() noexcept override { return own_; }
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int size() const noexcept override { return 2; }
  [[nodiscard]] bool linked(int peer) const noexcept override { return peer == 1; }
  [[nodiscard]] std::unique_ptr<ms::Transfer> send(int, std::uint64_t,
                                                   std::span<const std::byte>) override {
    return std::make_unique<PlayedTransfer>(waits_, done_by);
  }
  [[nodiscard]] std::unique_ptr<ms::Transfer> receive(int, std::uint64_t,
                                                      std::span<std::byte>) override {
    return std::make_unique<PlayedTransfer>(waits_, done_by);
  }
  [[nodiscard]] std::uint64_t moved(int peer) const override { return peer == 1 ? 42 : 0; }
  void abort(std::exception_ptr) noexcept override {}
  void close() noexcept override {}

  DoneBy done_by;

 private:
  Waits& waits_;
  ms::collectives::Own* const own_;
};

/// Waits until the deadline, as a transfer does that never ends.
bool never_done(ms::Deadline deadline) {
  std::this_thread::sleep_until(deadline.time());
  return false;
}

/// A group with a limit, over a played one, and a transfer of it.
struct Limited {
  explicit Limited(std::chrono::milliseconds limit)
      : group(ms::detail::with_limit(played, limit, collective)) {}
  std::unique_ptr<ms::Transfer> receive() { return group->receive(1, 0, memory); }

  Waits waits;
  std::vector<std::byte> memory = std::vector<std::byte>(8);
  std::shared_ptr<CollectiveWaits> collective = std::make_shared<CollectiveWaits>();
  std::shared_ptr<NotedGroup> played = std::make_shared<NotedGroup>(waits);
  std::shared_ptr<ms::ProcessGroup> group;
};

}  // namespace

TEST_CASE("a trainer's wait that ends soon asks nobody, and counts") {
  Limited job(3s);
  job.played->done_by = [&](ms::Deadline deadline) {
    CHECK_FALSE(job.collective->any());
    CHECK(deadline.remaining() <= 3000ms / 8);
    return true;
  };
  const auto transfer = job.receive();
  transfer->wait(ms::Deadline::never());
  transfer->wait(ms::Deadline::never());  // counts once
  job.group->send(1, 0, job.memory)->wait_while_moving(1h);
  CHECK(job.receive()->done_by(ms::Deadline::never()));
  CHECK(job.waits.until.size() == 4);
  CHECK(job.collective->done() == 3);
  CHECK(job.group->moved(1) == 42);
}

TEST_CASE("a trainer's wait lasts as long as bytes move anywhere") {
  constexpr auto kLimit = 200ms;
  Limited job(kLimit);
  const auto begin = ms::Deadline::Clock::now();
  int looks = 0;
  job.played->done_by = [&](ms::Deadline deadline) {
    if (++looks > 1) CHECK(job.collective->any());
    job.collective->set_moved(job.collective->moved() + 1);
    return never_done(deadline) || deadline.time() - begin > 3 * kLimit;
  };
  SECTION("without a deadline") { job.receive()->wait(ms::Deadline::never()); }
  SECTION("with a later one") { job.receive()->wait(ms::Deadline::after(1h)); }
  SECTION("with a silence that is longer") { job.receive()->wait_while_moving(1h); }
  CHECK(ms::Deadline::Clock::now() - begin > 3 * kLimit);
  CHECK_FALSE(job.collective->any());
  CHECK(job.collective->done() == 1);
}

TEST_CASE("a trainer's wait ends when no byte moves anywhere, and at its deadline") {
  constexpr auto kLimit = 200ms;
  Limited job(kLimit);
  job.played->done_by = never_done;
  const auto transfer = job.receive();
  const auto begin = ms::Deadline::Clock::now();
  const auto error_of = [&](const auto& wait) {
    try {
      wait();
    } catch (const ms::PeerSilent& e) {
      CHECK(e.rank() == 1);
      return std::string(e.what());
    }
    return std::string();
  };
  SECTION("the first answers of the neighbours are no bytes that move") {
    int looks = 0;
    job.played->done_by = [&](ms::Deadline deadline) {
      if (++looks == 2) job.collective->set_moved(1000);
      return never_done(deadline);
    };
    CHECK_THAT(error_of([&] { transfer->wait(ms::Deadline::never()); }),
               contains_text("rank 1: not done; no byte of the collectives has moved for 200 ms"));
    CHECK(job.waits.until.back().time() - begin >= kLimit);
    // The first look lasts for a sixteenth of the first silence. No other, but the last, is later
    // than that silence.
    const auto length =
        job.waits.until[job.waits.until.size() - 2].time() - job.waits.until[0].time();
    CHECK(length <= kLimit - kLimit / 16);
  }
  SECTION("a later deadline") {
    CHECK_THAT(error_of([&] { transfer->wait(ms::Deadline::after(1h)); }),
               contains_text("for 200 ms"));
  }
  SECTION("a silence that is shorter") {
    CHECK_THAT(error_of([&] { transfer->wait_while_moving(50ms); }), contains_text("for 50 ms"));
  }
  SECTION("a deadline that is earlier, or long past") {
    const auto until = ms::Deadline::after(GENERATE(-1000ms, 5ms, 100ms));
    CHECK(error_of([&] { transfer->wait(until); }) == "peer silent: rank 1: not done");
    CHECK_FALSE(transfer->done_by(until));
    for (const auto& by : job.waits.until) CHECK(by.time() <= until.time());
  }
  CHECK_FALSE(job.collective->any());
  CHECK(job.collective->done() == 0);
}

TEST_CASE("a backend's own collective has the limit in all, or its earlier deadline") {
  constexpr auto kLimit = 3s;
  Waits waits;
  NotedCollectives own(waits);
  const auto nobody = std::make_shared<CollectiveWaits>();
  CHECK(ms::detail::with_limit(std::make_shared<NotedGroup>(waits), kLimit, nobody)
            ->own_collectives() == nullptr);
  const auto group =
      ms::detail::with_limit(std::make_shared<NotedGroup>(waits, &own), kLimit, nobody);
  const auto before = ms::Deadline::Clock::now();
  ms::collectives::barrier(*group);
  ms::collectives::barrier(*group, ms::Deadline::after(1h));
  ms::collectives::barrier(*group, ms::Deadline::at(before));
  REQUIRE(waits.until.size() == 3);
  for (const std::size_t i : {0U, 1U}) {
    CHECK_FALSE(waits.until[i].expired());
    CHECK(waits.until[i].remaining() <= kLimit);
  }
  CHECK(waits.until[2].expired());
}
