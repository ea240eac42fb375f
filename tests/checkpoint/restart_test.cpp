// A job that comes back with other options, and ranks whose options differ.
#include <functional>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;
using Change = std::function<void(int rank, ms::CheckpointerOptions&)>;

/// One life of the job, which ends without finish(); what each rank threw.
std::vector<std::string> live(InProcessJob& job, std::uint64_t finds,
                              const std::vector<std::uint64_t>& stages, const Change& change = {}) {
  return run_ranks(all_ranks(job.world_size()), [&](int rank) {
    auto options = job.options(rank);
    if (change) change(rank, options);
    ms::Checkpointer ckpt(std::move(options));
    (void)recover_to(ckpt, finds);
    stage_all(ckpt, stages);
  });
}

void ring(int /*rank*/, ms::CheckpointerOptions& options) {
  options.holders = {{1}, {2}, {3}, {0}};
}

}  // namespace

TEST_CASE("memory and Store lost: what comes after is newer than what is on disk") {
  const int world = GENERATE(1, 2);
  InProcessJob job(world);
  // Every life of the job goes on from what the one before persisted, by two steps.
  const auto live = [&](std::uint64_t from, const std::shared_ptr<ms::Store>& store) {
    all_good(run_ranks(all_ranks(world), [&](int rank) {
      auto o = job.options(rank);
      o.persist_every = 1;
      o.store_object = store;
      ms::Checkpointer ckpt(std::move(o));
      (void)recover_to(ckpt, from);
      stage_all(ckpt, {from + 1, from + 2});
      ckpt.finish();  // waits for the disk, removes the vaults
    }));
  };
  live(0, job.store());
  live(2, job.store());
  live(4, std::make_shared<ms::InMemoryStore>());
  live(6, std::make_shared<ms::InMemoryStore>());
}

TEST_CASE("a job that comes back with other holders goes on, and they hold from then on") {
  InProcessJob job(4);
  all_good(live(job, 0, {1, 2}));  // rank 2's holder is 0
  all_good(live(job, 2, {3}, ring));
  job.wipe(2);
  all_good(live(job, 3, {4}, ring));  // from rank 3
}

TEST_CASE("an image that only a holder of before has comes back, and goes to the new holder") {
  InProcessJob job(4);
  all_good(live(job, 0, {1, 2}));
  job.wipe(2);
  all_good(live(job, 2, {}, ring));  // rank 0 has it, and is not linked to rank 2
  job.wipe(2);
  all_good(live(job, 2, {3}, ring));  // from rank 3
}

TEST_CASE("a job that comes back with other blocks fetches what was made with the old ones") {
  const std::uint64_t before = GENERATE(4096, 16384);
  InProcessJob job(4);
  all_good(live(job, 0, {1, 2}, [&](int, auto& options) { options.block_bytes = before; }));
  job.wipe(2);
  all_good(live(job, 2, {3, 4}, [](int, auto& options) { options.block_bytes = 8192; }));
}

TEST_CASE("ranks with other holders or blocks are refused by name instead of waited for") {
  const bool blocks = GENERATE(false, true);
  InProcessJob job(4);
  const auto errors = live(job, 0, {1}, [&](int rank, auto& options) {
    options.forming_deadline = std::chrono::seconds(2);
    if (rank != 1) return;
    if (blocks) {
      options.block_bytes = 8192;
    } else {
      ring(rank, options);
    }
  });
  // Whoever claims the generation first decides whose options are the others'.
  std::string all;
  for (const auto& error : errors) all += error + "\n";
  CHECK_THAT(all, contains_text("give all ranks the same options"));
  CHECK_THAT(all, contains_text(blocks ? "blocks of 8192 bytes" : "holders "));
}
