// The root asks the Store before it decides: two jobs never acknowledge, and a Store that does not
// answer costs steps, not the job.
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::HangingStore;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::stage_one;

using Ranks = std::vector<std::unique_ptr<ms::Checkpointer>>;

std::unique_ptr<ms::Checkpointer>& of(Ranks& ranks, int rank) {
  return ranks[static_cast<std::size_t>(rank)];
}

}  // namespace

TEST_CASE("a job that was started again on other hosts acknowledges nothing more, and ends") {
  const int world = GENERATE(1, 2, 3);
  InProcessJob job(world);
  job.disk().make_directories("/elsewhere");
  ms::InProcessFabric elsewhere;
  Ranks first(static_cast<std::size_t>(world));
  Ranks second(static_cast<std::size_t>(world));
  all_good(run_ranks(all_ranks(world), [&](int rank) {
    of(first, rank) = std::make_unique<ms::Checkpointer>(job.options(rank));
    (void)recover_to(*of(first, rank), 0);
    stage_all(*of(first, rank), {1});
  }));
  // It cannot know what the first job has: nothing says where that is.
  all_good(run_ranks(all_ranks(world), [&](int rank) {
    auto options = job.options(rank);
    options.vault_directory = "/elsewhere";
    options.transport = elsewhere.attach(rank);
    options.take_over = true;
    of(second, rank) = std::make_unique<ms::Checkpointer>(std::move(options));
  }));
  const auto errors = run_ranks(all_ranks(world), [&](int rank) {
    try {
      const auto outcome = stage_one(*of(first, rank), 2);
      ms::test::fail_test("step 2: " + std::string(to_string(outcome)));
    } catch (const ms::RejoinNeeded&) {
    }
    (void)of(first, rank)->rejoin();
  });
  for (const auto& error : errors) CHECK_THAT(error, contains_text("fenced"));
}

TEST_CASE("while the Store does not answer steps fail, and the first after that is complete") {
  const int world = GENERATE(1, 2);
  InProcessJob job(world);
  const auto store = std::make_shared<HangingStore>(job.store());
  Ranks ranks(static_cast<std::size_t>(world));
  const auto on_all = [&](const std::function<void(ms::Checkpointer&)>& call) {
    all_good(run_ranks(all_ranks(world), [&](int rank) { call(*of(ranks, rank)); }));
  };
  all_good(run_ranks(all_ranks(world), [&](int rank) {
    auto options = job.options(rank);
    options.deadline = std::chrono::seconds(2);
    options.store_object = store;
    of(ranks, rank) = std::make_unique<ms::Checkpointer>(std::move(options));
    (void)recover_to(*of(ranks, rank), 0);
    stage_all(*of(ranks, rank), {1});
  }));
  store->hang();
  for (const std::uint64_t step : {2U, 3U}) {
    on_all([&](ms::Checkpointer& ckpt) {
      ms::test::require(stage_one(ckpt, step) == ms::Outcome::kFailed, "it did not fail");
    });
  }
  store->go_on();
  on_all([](ms::Checkpointer& ckpt) {
    stage_all(ckpt, {4});
    ms::test::require(ckpt.stats().failed == 2, "not counted");
  });
  ranks.clear();
  CHECK_THAT(job.log(), contains_text("asking the Store whether generation 1 is the newest"));
}
