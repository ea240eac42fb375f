// A user's callbacks that throw: each is reported once, and ends a step or a generation in order.
#include <atomic>
#include <chrono>
#include <future>
#include <stdexcept>
#include <string>

#include <meshstage/core/replicate/report.hpp>
#include <meshstage/core/stage/pace.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/kept_errors.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::recover_fresh;
using ms::test::recover_to;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::state_of;

class ThrowingPace final : public ms::Pace {
 public:
  void before(std::uint64_t, ms::Watermark&) override {
    if (throws) throw 42;
  }
  std::atomic<bool> throws{false};
};

}  // namespace

TEST_CASE("a log that throws is called no more, which is said once, and the job goes on") {
  const ms::test::KeptErrors kept;  // of rank 1's log alone: rank 0's takes its lines
  InProcessJob job(2);
  std::atomic<int> calls{0};
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    if (rank == 1) {
      o.log = [&](const ms::LogLine&) {
        ++calls;
        throw std::runtime_error("no more lines");
      };
    }
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    for (const std::uint64_t step : {1, 3}) {  // rank 0 passes them by: a warning at rank 1 each
      if (rank == 1) (void)ckpt.stage(state_of(rank, step), step);
      stage_all(ckpt, {step + 1});
    }
    ckpt.finish();
  }));
  CHECK(calls == 1);
  const std::string errors = kept.text();
  INFO(errors);
  CHECK(times_in(errors, "the log callback threw: no more lines") == 1);
  CHECK(times_in(errors, "the log callback threw") == 1);
  // The line that it did not take, and the next.
  CHECK(times_in(errors, "rank 1: step 1 failed: ") == 1);
  CHECK(times_in(errors, "rank 1: step 3 failed: ") == 1);
}

TEST_CASE("a log that hangs holds neither a start nor a step, and its lines come one by one") {
  constexpr auto kLong = std::chrono::seconds(20);
  InProcessJob job(2);
  std::promise<void> asked, go_on;
  std::shared_future<void> gone_on = go_on.get_future();
  std::atomic<int> calls{0}, at_once{0};
  std::atomic<bool> in_time{false};
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    if (rank == 0) {
      o.log = [&](const ms::LogLine& line) {
        if (++at_once > 1) throw std::logic_error("two lines at once");
        if (calls++ == 0) {
          require(line.text.find("waiting for ranks 1 of 2") != std::string::npos, line.text);
          asked.set_value();
          in_time = gone_on.wait_for(kLong) == std::future_status::ready;
        }
        --at_once;
      };
    } else {
      require(asked.get_future().wait_for(kLong) == std::future_status::ready, "nobody waits");
    }
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    if (rank == 0) (void)ckpt.stage(state_of(rank, 1), 1);  // rank 1 passes it by: a warning
    stage_all(ckpt, {2});
    if (rank == 0) go_on.set_value();
    ckpt.finish();
  }));
  CHECK(in_time);
  CHECK(calls > 1);
}

TEST_CASE("an observer that throws ends the generation, and is called no more") {
  using ms::Point;
  for (const auto point : {Point::kOwnSealed, Point::kChunkReceived, Point::kChunkSent}) {
    INFO(to_string(point));
    InProcessJob job(2);
    std::atomic<int> throws{0};
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      auto o = job.options(rank);
      if (rank == 1) {
        o.observer = [&](const ms::PointEvent& event) {
          if (event.point != point || event.id.step != 2) return;
          ++throws;
          throw std::runtime_error("the observer's own");
        };
      }
      ms::Checkpointer ckpt(std::move(o));
      (void)recover_to(ckpt, 0);
      stage_all(ckpt, {1});
      std::string what = "nothing";
      try {
        for (std::uint64_t step = 2;; ++step) {
          auto staging = ckpt.stage(state_of(rank, step), step);
          (void)staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20)));
        }
      } catch (const ms::PeerLost& e) {
        what = e.what();
        require(!e.rank(), "a rank is to blame");
      }
      require(what.find("rank 1 cannot go on") != std::string::npos &&
                  what.find("the observer's own") != std::string::npos,
              what);
      ckpt.rejoin();
      require(recover_fresh(ckpt).step >= 1, "nothing was recovered");
      stage_all(ckpt, {10});
      ckpt.finish();
    }));
    CHECK(throws == 1);
    CHECK(times_in(job.log(), "cannot go on") == 1);
  }
}

TEST_CASE("a pace that throws fails the step, which its rank's staged() and log say once") {
  InProcessJob job(2);
  ThrowingPace pace;
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    if (rank == 1) o.pace = &pace;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    if (rank == 1) pace.throws = true;
    auto staging = ckpt.stage(state_of(rank, 2), 2);
    bool threw = false;
    try {
      staging.staged().wait();
    } catch (const int& thrown) {
      threw = thrown == 42;
    }
    require(threw == (rank == 1), "staged() of rank " + std::to_string(rank));
    require(staging.outcome().get() == ms::Outcome::kFailed, "the step is complete");
    if (rank == 1) pace.throws = false;
    stage_all(ckpt, {3});
    ckpt.finish();
  }));
  const std::string log = job.log();
  INFO(log);
  CHECK(times_in(log, "rank 1: step 2 failed: rank 1 voted no: ") == 1);
  // Not at all where rank 0 hears of it before it stages the step.
  CHECK(times_in(log, "rank 0: step 2 failed: rank ") ==
        times_in(log, "rank 0: step 2 failed: rank 1 voted no: "));
}
