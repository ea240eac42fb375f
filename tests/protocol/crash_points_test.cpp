#include <memory>
#include <random>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/explorer/explore.hpp"

// Ranks in one process, with simulated vaults and messages: one is killed at each named point, as
// owner and as holder, and everything goes on to the last step. What was promised is checked by the
// world at every step.

using namespace meshstage;
using namespace meshstage::explorer;
using Kind = meshstage::explorer::Choice::Kind;

namespace {

struct Plan {
  int world = 2;
  int victim = 0;
  Point point{};
  int times = 1;           ///< the n-th time the victim comes by
  int lost_host = -1;      ///< this rank's host is lost before, so that images must be fetched
  bool fail_once = false;  ///< a replica fails first
  std::uint64_t seed = 1;
};

struct Outcome {
  bool reached = false;
  std::string wrong;
};

bool take(World& world, Kind kind, int rank = -1) {
  for (const auto& choice : world.choices()) {
    if (choice.kind == kind && (rank < 0 || choice.a == rank)) return world.apply(choice);
  }
  return false;
}

Outcome run(const Plan& plan) {
  Bounds bounds;
  bounds.world = plan.world;
  bounds.steps = 3;
  bounds.host_losses = plan.lost_host >= 0 ? 1 : 0;
  bounds.local_failures = plan.fail_once ? 1 : 0;
  bounds.disk = true;
  bounds.finish = true;
  World world(std::make_shared<const Bounds>(bounds));
  std::mt19937_64 random(plan.seed);
  bool failed = !plan.fail_once, lost = plan.lost_host < 0;
  if (lost) world.crash_at(plan.victim, plan.point, plan.times);
  for (int i = 0; i < 20'000; ++i) {
    if (!world.violation().empty()) return {true, world.violation()};
    if (!lost && world.agreed().exists()) {
      lost = take(world, Kind::kHostLost, plan.lost_host);
      world.crash_at(plan.victim, plan.point, plan.times);
      continue;
    }
    if (!failed && take(world, Kind::kReplicaFailed)) {
      failed = true;
      continue;
    }
    auto choices = world.choices();
    std::erase_if(choices, [&](const auto& choice) {
      const bool failure = choice.kind == Kind::kReplicaFailed || choice.kind == Kind::kOwnFailed ||
                           choice.kind == Kind::kFetchFailed;
      return is_fault(choice) ||
             (failure && !failed);  // once failed, only what was aborted ends so
    });
    if (choices.empty()) break;
    world.apply(choices[random() % choices.size()]);
  }
  Outcome outcome;
  outcome.reached = !world.crash_pending();
  outcome.wrong = world.violation();
  if (outcome.wrong.empty() && !world.over()) outcome.wrong = "not finished: " + world.stuck();
  if (outcome.wrong.empty() && world.agreed().step != 3)
    outcome.wrong = "the last step is not complete";
  return outcome;
}

void crash_everywhere(int world) {
  for (const Point point : all_points()) {
    int reached = 0;
    for (int victim = 0; victim < world; ++victim) {
      for (const int times : {1, 2, 3}) {
        for (const int lost_host : {-1, victim, (victim + world / 2) % world}) {
          for (const bool fail_once : {false, true}) {
            Plan plan;
            plan.world = world;
            plan.victim = victim;
            plan.point = point;
            plan.times = times;
            plan.lost_host = lost_host;
            plan.fail_once = fail_once;
            plan.seed = static_cast<std::uint64_t>(100 * victim + 10 * times + world);
            const Outcome outcome = run(plan);
            INFO("rank " << victim << " of " << world << " at " << to_string(point) << ", time "
                         << times << (lost_host >= 0 ? ", after a lost host" : "")
                         << (fail_once ? ", after a failure" : ""));
            REQUIRE(outcome.wrong == "");
            reached += outcome.reached ? 1 : 0;
          }
        }
      }
    }
    INFO(to_string(point) << " with " << world << " ranks");
    REQUIRE(reached > 0);  // a point that is never reached proves nothing
  }
}

}  // namespace

TEST_CASE("two ranks recover from a crash at each point") { crash_everywhere(2); }
TEST_CASE("three ranks recover from a crash at each point") { crash_everywhere(3); }
TEST_CASE("four ranks recover from a crash at each point") { crash_everywhere(4); }
TEST_CASE("five ranks recover from a crash at each point") { crash_everywhere(5); }

TEST_CASE("an undisturbed run completes every step at any world size") {
  for (const int world : {1, 2, 3, 4, 5, 7, 16}) {
    Plan plan;
    plan.world = world;
    plan.point = Point::kFinishing;
    plan.times = 1000;  // never
    const Outcome outcome = run(plan);
    INFO(world << " ranks");
    REQUIRE(outcome.wrong == "");
    REQUIRE_FALSE(outcome.reached);
  }
}
