// What the trainer's collectives move, added up over the tree: `collective_progress` alone, the
// other ranks played, and the waits that it serves.
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>

#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/replicate/collective_waits.hpp>

#include "tests/replicate/part_bench.hpp"
#include "tests/replicate/played_peers.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/idle_group.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using protocol::Moved;
using replicate::CollectiveWaits;
using test::InProcessJob;
using test::PartBench;
using test::PlayedLinks;

/// A training group of rank 1 that moves what the test says, with rank 0.
class PlayedGroup final : public test::IdleGroup {
 public:
  [[nodiscard]] int rank() const noexcept override { return 1; }
  [[nodiscard]] int size() const noexcept override { return 7; }
  [[nodiscard]] bool linked(int peer) const noexcept override { return peer == 0; }
  [[nodiscard]] std::uint64_t moved(int) const override {
    if (ended) throw std::runtime_error("its user gave it up");
    return count;
  }

  std::atomic<std::uint64_t> count{0};
  std::atomic<bool> ended{false};
};

/// Rank 1 of 7, whose neighbours in the tree are 0, 3 and 4.
class Rank1 {
 public:
  explicit Rank1(std::chrono::milliseconds deadline) : bench(options(deadline)) { enter(7); }

  /// The bench is in generation 7 from the start on.
  void enter(std::uint64_t generation) {
    if (generation != PartBench::kGeneration) {
      bench.leave();
      bench.enter(generation);
    }
    bench.engine.generation.links = links;
    bench.engine.generation.training = group;
    bench.listener.listen(*links, false);
  }
  /// On the loop, as the links bring it.
  void hear(int from, const Moved& message) {
    bench.in_loop([&] { bench.collectives.hear(from, message); });
  }
  /// The next message that leaves must be this one.
  void sends(int to, const Moved& message) {
    const auto sent = links->next<Moved>(bench.engine, to);
    INFO("to rank " << to << ": count " << sent.count << ", asks " << sent.asks);
    CHECK(sent == message);
  }
  [[nodiscard]] std::uint64_t moved() { return bench.engine.collective_waits->moved(); }
  CollectiveWaits& waits() { return *bench.engine.collective_waits; }

  const std::shared_ptr<PlayedLinks> links = std::make_shared<PlayedLinks>(std::vector{0, 3, 4});
  const std::shared_ptr<PlayedGroup> group = std::make_shared<PlayedGroup>();
  InProcessJob job{7};
  PartBench bench;

 private:
  CheckpointerOptions options(std::chrono::milliseconds deadline) {
    auto o = job.options(1);
    o.deadline = deadline;
    return o;
  }
};

}  // namespace

TEST_CASE("collective_progress: a neighbour gets the counts of all others, none of its own back") {
  Rank1 rank(200ms);
  rank.group->count = 3;
  rank.waits().count_done();
  rank.waits().count_done();
  rank.hear(3, {10, true});
  CHECK(rank.moved() == 15);
  rank.sends(0, {15, true});
  rank.sends(3, {5, false});
  rank.sends(4, {15, true});

  rank.hear(0, {100, false});
  CHECK(rank.moved() == 115);
  rank.sends(3, {105, false});
  rank.hear(4, {1000, false});
  rank.sends(3, {1105, false});
  // An older count is no news, and rank 3's own goes to nobody who has not asked.
  rank.hear(0, {50, false});
  rank.hear(3, {20, true});
  CHECK(rank.moved() == 1125);
  rank.hear(4, {1001, false});
  rank.sends(3, {1106, false});

  // From the loop alone, without the trainer: nobody tells this rank that its group moved bytes.
  rank.group->count = 4;
  rank.sends(3, {1107, false});

  rank.hear(4, {1001, true});
  rank.sends(3, {1107, true});
  rank.sends(4, {126, true});
  rank.hear(3, {20, false});
  rank.sends(4, {126, false});
  rank.hear(4, {1001, false});
  rank.sends(0, {1027, false});
  rank.sends(3, {1107, false});
  rank.hear(0, {200, false});
  rank.hear(3, {30, false});
  rank.bench.in_loop([] {});
  CHECK(rank.links->nothing_sent());
}

TEST_CASE("collective_progress: a wait asks the neighbours, and a deadline after it no more") {
  Rank1 rank(200ms);
  rank.group->count = 3;
  {
    const CollectiveWaits::Long wait(rank.waits());
    for (const int n : {0, 3, 4}) rank.sends(n, {3, true});
    const CollectiveWaits::Long another(rank.waits());
    rank.hear(0, {10, false});
    CHECK(rank.moved() == 13);
    rank.hear(3, {0, true});
    rank.sends(3, {13, true});
    rank.group->count = 8;
    rank.sends(3, {18, true});
    CHECK(rank.moved() == 18);
    rank.hear(3, {0, false});
    CHECK(rank.links->nothing_sent());
  }
  const auto end = std::chrono::steady_clock::now();
  for (const int n : {0, 3, 4}) rank.sends(n, {n == 0 ? 8U : 18U, false});
  CHECK(std::chrono::steady_clock::now() - end > 100ms);
  {
    const CollectiveWaits::Long wait(rank.waits());
    for (const int n : {0, 3, 4}) rank.sends(n, {n == 0 ? 8U : 18U, true});
  }
}

TEST_CASE(
    "collective_progress: without a wait nothing is sent, and the end of a group is no news") {
  Rank1 rank(200ms);
  rank.group->count = 3;
  for (int i = 0; i < 100; ++i) rank.waits().count_done();
  rank.hear(0, {10, false});
  CHECK(rank.links->nothing_sent());
  CHECK(rank.moved() == 113);
  rank.group->ended = true;
  rank.hear(0, {11, false});
  CHECK(rank.moved() == 114);
  CHECK(rank.bench.nothing_fed());
}

TEST_CASE(
    "collective_progress: many counts of others make few messages, of which the last counts") {
  Rank1 rank(4s);  // a count in each 250 ms
  rank.hear(3, {0, true});
  rank.sends(0, {0, true});
  rank.sends(4, {0, true});
  rank.bench.in_loop([&] {
    for (std::uint64_t i = 1; i <= 1000; ++i) rank.bench.collectives.hear(0, {i, false});
  });
  // The first ones at once, because each may be the first answer of one rank more.
  for (std::uint64_t i = 1; i <= replicate::CollectiveProgress::kMost; ++i)
    rank.sends(3, {i, false});
  rank.sends(3, {1000, false});
  CHECK(rank.links->nothing_sent());
}

TEST_CASE("collective_progress: a new generation counts anew, and nothing of the old one goes on") {
  Rank1 rank(200ms);
  rank.group->count = 3;
  const auto old = rank.bench.engine.collective_waits;
  std::optional<CollectiveWaits::Long> wait(std::in_place, *old);
  for (const int n : {0, 3, 4}) rank.sends(n, {3, true});
  rank.hear(3, {100, true});
  rank.group->count = 1;
  rank.enter(8);
  CHECK(rank.links->nothing_sent());
  CHECK(rank.moved() == 0);
  rank.hear(4, {5, true});
  rank.sends(0, {6, true});
  rank.sends(3, {6, true});
  rank.sends(4, {1, false});
  CHECK(rank.moved() == 6);
  CHECK(old->moved() == 103);
  wait.reset();  // of a group that the trainer has kept
  wait.emplace(*old);
  rank.hear(4, {5, false});
  rank.sends(0, {6, false});
  rank.sends(3, {6, false});
  rank.bench.in_loop([] {});
  CHECK(rank.links->nothing_sent());
}

TEST_CASE("collective_progress: only a neighbour's message of this generation counts") {
  Rank1 rank(200ms);
  const auto arrives = [&](int from, std::uint64_t generation) {
    rank.links->handlers.on_message(
        from, protocol::with_digest(
                  protocol::encode(rank.bench.engine.wire, from, {generation, Moved{7, false}})));
    rank.bench.in_loop([] {});
  };
  arrives(5, PartBench::kGeneration);
  CHECK(rank.bench.logs("moved from rank 5, no neighbour"));
  arrives(3, PartBench::kGeneration - 1);
  CHECK(rank.bench.logs("generation 6, this is 7"));
  CHECK(rank.moved() == 0);
  arrives(3, PartBench::kGeneration);
  CHECK(rank.moved() == 7);
  CHECK(rank.bench.nothing_fed());
}
