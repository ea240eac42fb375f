// A job that is started anew while all its processes are still there, as after SIGSTOP.
#include <memory>
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

/// The ranks of one start, still there.
using Start = std::vector<std::unique_ptr<ms::Checkpointer>>;

Start start(InProcessJob& job, std::uint64_t finds, const std::vector<std::uint64_t>& stages) {
  Start ranks(static_cast<std::size_t>(job.world_size()));
  all_good(run_ranks(all_ranks(job.world_size()), [&](int rank) {
    auto& ckpt = ranks[static_cast<std::size_t>(rank)];
    ckpt = std::make_unique<ms::Checkpointer>(job.options(rank));
    (void)recover_to(*ckpt, finds);
    stage_all(*ckpt, stages);
  }));
  return ranks;
}

/// Forms a generation, and ends before it has recovered anything.
void start_and_end(InProcessJob& job) {
  all_good(run_ranks(all_ranks(job.world_size()),
                     [&](int rank) { const ms::Checkpointer ckpt(job.options(rank)); }));
}

}  // namespace

TEST_CASE("a job whose processes all hang is started anew from what they hold") {
  const int world = GENERATE(1, 2, 3);
  InProcessJob job(world);
  const Start hung = start(job, 0, {1, 2});
  (void)start(job, 2, {3});
}

TEST_CASE(
    "what processes held that hung when the job was started anew is found once they are gone") {
  const int world = GENERATE(1, 2, 3);
  InProcessJob job(world);
  Start hung = start(job, 0, {1, 2});
  start_and_end(job);
  hung.clear();
  (void)start(job, 2, {3});
  (void)start(job, 3, {});
  for (const auto& name : job.disk().list("/vault")) {
    if (name.find("-i1-") != std::string::npos) FAIL(name << " is left over");
  }
}

TEST_CASE("starts that follow one another, each beside all that hung before, lose nothing") {
  InProcessJob job(2);
  std::vector<Start> all;
  for (std::uint64_t step = 0; step < 6; step += 2) {
    all.push_back(start(job, step, {step + 1, step + 2}));
  }
  all.clear();
  (void)start(job, 6, {7});
}
