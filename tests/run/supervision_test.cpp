// Who is started anew, when, and when the job ends.
#include "tools/run/supervision.hpp"
#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
using namespace meshstage::tools;
using namespace meshstage::tools::run;
using Kind = Decision::Kind;

namespace {

constexpr End kKilled{true, 9};
constexpr End kFailed{false, 3};
constexpr End kFinished{false, 0};
constexpr End kAsksForAll{false, kRestartAllStatus};

Supervision four(RestartPolicy policy = RestartPolicy::kAlone,
                 std::optional<std::uint64_t> max_restarts = {}) {
  Supervision s({.ranks = 4, .policy = policy, .max_restarts = max_restarts});
  for (int rank = 0; rank < 4; ++rank) s.started(rank, 0s);
  return s;
}

}  // namespace

TEST_CASE("a rank that had joined is started anew at once, however often") {
  Supervision s = four();
  for (int i = 0; i < 20; ++i) {
    s.joined(2);
    const Decision d = s.ended(2, kKilled, 5s);
    CHECK(d.kind == Kind::kRestart);
    CHECK(d.rank == 2);
    CHECK(d.delay == 0ms);
    s.started(2, 5s);
  }
  CHECK(s.restarts() == 20);
}

TEST_CASE("a rank that dies before it joined waits longer each time, and the third ends the job") {
  Supervision s = four();
  CHECK(s.ended(1, kFailed, 1s).delay == 1s);
  s.started(1, 2s);
  CHECK(s.ended(1, kFailed, 3s).delay == 2s);
  s.started(1, 5s);
  const Decision d = s.ended(1, kFailed, 6s);
  CHECK(d.kind == Kind::kFail);
  CHECK(d.exit_status == 3);
  CHECK_THAT(d.why,
             contains_text("rank 1") && contains_text("exit code 3") && contains_text("3 times"));
}

TEST_CASE("early deaths of other ranks, and those before a join, do not count") {
  Supervision s = four();
  (void)s.ended(1, kFailed, 1s);
  s.started(1, 1s);
  (void)s.ended(1, kFailed, 2s);
  s.started(1, 2s);
  CHECK(s.ended(2, kFailed, 2s).kind == Kind::kRestart);
  s.joined(1);
  CHECK(s.ended(1, kFailed, 3s).delay == 0ms);
}

TEST_CASE("who lived for a minute counts as joined without a report") {
  Supervision s = four();
  (void)s.ended(1, kFailed, 1s);
  s.started(1, 1s);
  (void)s.ended(1, kFailed, 2s);
  s.started(1, 2s);
  const Decision d = s.ended(1, kKilled, 62s);
  CHECK(d.kind == Kind::kRestart);
  CHECK(d.delay == 0ms);
}

TEST_CASE("the job is done when every rank ended with 0, and none of them is started anew") {
  Supervision s = four();
  for (int rank = 0; rank < 3; ++rank) CHECK(s.ended(rank, kFinished, 9s).kind == Kind::kNothing);
  CHECK(s.ended(3, kFinished, 9s).kind == Kind::kDone);
  CHECK(s.restarts() == 0);
}

TEST_CASE("a death after another rank has finished ends the job") {
  Supervision s = four();
  s.joined(1);
  (void)s.ended(0, kFinished, 9s);
  const Decision d = s.ended(1, kKilled, 9s);
  CHECK(d.kind == Kind::kFail);
  CHECK(d.exit_status == 137);
}

TEST_CASE("75 restarts all ranks, and so does every death if that is the policy") {
  Supervision alone = four();
  alone.joined(3);
  const Decision asked = alone.ended(3, kAsksForAll, 9s);
  CHECK(asked.kind == Kind::kRestartAll);
  CHECK_THAT(asked.why, contains_text("asks"));

  Supervision all = four(RestartPolicy::kAll);
  all.joined(0);
  CHECK(all.ended(0, kKilled, 9s).kind == Kind::kRestartAll);
}

TEST_CASE("ranks that had finished run again after a restart of all") {
  Supervision s = four(RestartPolicy::kAll);
  s.joined(1);
  (void)s.ended(0, kFinished, 9s);
  CHECK(s.ended(1, kKilled, 9s).kind == Kind::kRestartAll);
  s.all_ended();
  for (int rank = 0; rank < 4; ++rank) s.started(rank, 10s);
  for (int rank = 0; rank < 3; ++rank) CHECK(s.ended(rank, kFinished, 19s).kind == Kind::kNothing);
  CHECK(s.ended(3, kFinished, 19s).kind == Kind::kDone);
}

TEST_CASE("a limit of restarts counts those of all ranks") {
  Supervision none = four(RestartPolicy::kAlone, 0);
  none.joined(1);
  CHECK(none.ended(1, kKilled, 9s).kind == Kind::kFail);

  Supervision two = four(RestartPolicy::kAlone, 2);
  for (const int rank : {0, 1}) {
    two.joined(rank);
    CHECK(two.ended(rank, kKilled, 9s).kind == Kind::kRestart);
    two.started(rank, 9s);
  }
  two.joined(2);
  const Decision d = two.ended(2, kKilled, 9s);
  CHECK(d.kind == Kind::kFail);
  CHECK_THAT(d.why, contains_text("all 2 restarts"));
}
