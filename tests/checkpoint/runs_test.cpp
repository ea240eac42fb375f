// Runs of one job id: after finish() the next one starts anew, and runs that never heard of each
// other are not mixed. tests/protocol/runs_test.cpp goes through all histories of a model of this.
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include <meshstage/core/comm/wrapped_store.hpp>
#include <meshstage/core/generation/number.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/seated_job.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::SeatedJob;
using ms::test::stage_all;

ms::CheckpointerOptions in_memory_alone(InProcessJob& job, int rank) {
  auto options = job.options(rank);
  options.persist_every = 0;
  return options;
}

/// Another Store, whose set() of one key fails.
class FailingSet final : public ms::WrappedStore {
 public:
  FailingSet(std::shared_ptr<ms::Store> inner, std::string key)
      : WrappedStore(std::move(inner)), key_(std::move(key)) {}
  void set(const std::string& key, std::string_view value, ms::Deadline deadline) override {
    if (key == key_) throw ms::IoError("the store is gone");
    WrappedStore::set(key, value, deadline);
  }

 private:
  const std::string key_;
};

}  // namespace

TEST_CASE("the same job id again after finish(), without files: the job starts anew, each time") {
  const int world = GENERATE(1, 2, 3);
  InProcessJob job(world);
  for (int life = 0; life < 3; ++life) {
    const auto live = [&](std::uint64_t finds, std::uint64_t stages, bool finishes) {
      all_good(run_ranks(all_ranks(world), [&](int rank) {
        ms::Checkpointer ckpt(in_memory_alone(job, rank));
        (void)recover_to(ckpt, finds);
        stage_all(ckpt, {stages});
        if (finishes) ckpt.finish();
      }));
    };
    live(0, 1, false);
    live(1, 2, true);  // until it finishes, the run goes on from its newest step
  }
}

TEST_CASE("after finish() a step that is lost is missed as in the first run") {
  InProcessJob job(2);
  const auto live = [&](bool finishes) {
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      ms::Checkpointer ckpt(in_memory_alone(job, rank));
      (void)recover_to(ckpt, 0);
      stage_all(ckpt, {1});
      if (finishes) ckpt.finish();
    }));
  };
  live(true);
  live(false);
  job.wipe(0);
  job.wipe(1);
  for (const auto& error : run_ranks(all_ranks(2), [&](int rank) {
         ms::Checkpointer ckpt(in_memory_alone(job, rank));
         (void)recover_to(ckpt, 0);
       })) {
    CHECK_THAT(error, contains_text("was complete, but no step has an image of every rank"));
  }
}

TEST_CASE("a finished job does not come back from a host that was out of reach") {
  // Rank 1 comes back there, or rank 0, to whom what lies there is a stray vault.
  const auto after = GENERATE(ms::test::Seats{0, 1}, ms::test::Seats{1, 0});
  SeatedJob job(2);
  job.live({0, 1}, 0, {1, 2, 3});
  job.live({0, 2}, 3, {4, 5}, true);
  CHECK_FALSE(job.files(1).empty());
  job.live(after, 0, {1}, true);
  CHECK(job.files(1).empty());
}

TEST_CASE("finish() ends well though the Store cannot note it, and says what to do") {
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto options = job.options(rank);
    options.store_object =
        std::make_shared<FailingSet>(job.store(), std::string(InProcessJob::kName) + "/finished");
    ms::Checkpointer ckpt(std::move(options));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    ckpt.finish();
  }));
  CHECK_THAT(job.log(), contains_text("cannot note that the job has finished"));
  CHECK_THAT(job.log(), contains_text("meshstage clean"));
}

TEST_CASE("two runs of one id that knew nothing of each other are not put together") {
  SeatedJob job(2);
  // Each stages the same steps, over other states. Rank 1 is on its way to the second step when
  // the ranks are killed, so no host alone has all of either run's newest.
  const auto live = [&](const ms::test::Seats& seats, std::uint64_t run) {
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      ms::Checkpointer ckpt(job.options(rank, seats[static_cast<std::size_t>(rank)]));
      (void)recover_to(ckpt, 0);
      auto staging = ckpt.stage(ms::test::state_of(rank, 100 * run), 7);
      ms::test::require(staging.outcome().get() == ms::Outcome::kComplete, "not complete");
    }));
  };
  live({0, 1}, 1);
  job.lose_store();
  live({2, 3}, 2);
  // Of the first run only rank 0's image is left, of the second only rank 1's, and each lies where
  // its rank comes back.
  job.keep_only(0, "-own");
  job.keep_only(3, "-own");
  job.lose(1);
  job.lose(2);
  job.lose_store();
  std::array<std::uint64_t, 2> found{};
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank, rank == 0 ? 0 : 3));
    ms::Dict state = ms::test::state_of(rank, 0);
    (void)ckpt.recover(state);
    for (const std::uint64_t run : {1U, 2U}) {
      if (ms::test::difference(state, ms::test::state_of(rank, 100 * run)).empty()) {
        found.at(static_cast<std::size_t>(rank)) = run;
      }
    }
  });
  CHECK(found == std::array<std::uint64_t, 2>{0, 0});
  for (const auto& error : errors) {
    CHECK_THAT(error, contains_text("no step has an image of every rank"));
    CHECK_THAT(error, contains_text("are of 2 runs, which are never put together"));
  }
}
