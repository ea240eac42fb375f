// What is on disk, and when, and how a job ends: every n-th step, on request, in finish(), and for
// all ranks at the same step after one of them wished for it.
#include <barrier>
#include <csignal>
#include <string>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using ms::DiskOutcome;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::require;
using ms::test::run_ranks;

using Steps = std::vector<std::uint64_t>;

/// The steps of which rank 0 has its own image on disk.
Steps on_disk(InProcessJob& job) {
  Steps steps;
  for (const auto& image : ms::list_images(job.disk(), "/disk", InProcessJob::kName)) {
    if (image.name.rank == 0 && image.name.writer() == 0) steps.push_back(image.name.id.step);
  }
  return steps;
}

struct State {
  ms::Tensor weight = ms::Tensor::zeros({64}, ms::DType::kF32);
  ms::Dict dict{{"weight", weight}};
};

/// Stages the step, waits until it is complete, and tells what became of it on disk.
DiskOutcome stage(ms::Checkpointer& ckpt, const State& state, std::uint64_t step) {
  auto staging = ckpt.stage(state.dict, step);
  require(staging.outcome().get() == ms::Outcome::kComplete, "complete");
  return staging.persisted().get();
}

}  // namespace

TEST_CASE("finish() leaves the newest step on disk, and as many before it as are to be kept") {
  const std::size_t keep = GENERATE(1, 2);
  const std::uint64_t every = GENERATE(0, 1, 100);
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto options = job.options(rank);
    options.persist_every = every;
    options.keep = keep;
    ms::Checkpointer ckpt(options);
    State state;
    (void)ckpt.recover(state.dict);
    for (std::uint64_t step = 1; step <= 3; ++step) {
      const auto disk = stage(ckpt, state, step);
      require(disk == (every == 1 ? DiskOutcome::kEverywhere : DiskOutcome::kNotDue), "its disk");
    }
    ckpt.finish();
    require(ckpt.stats().complete_step == 3, "step 3 is complete");
    require(ckpt.stats().disk_step == (every == 0 ? 0U : 3U), "step 3 is on disk");
  }));
  CHECK(on_disk(job) == (every == 0 ? Steps{} : every == 1 && keep == 2 ? Steps{2, 3} : Steps{3}));
  auto wrong = job.options(0);
  wrong.keep = 0;
  CHECK_THROWS_AS(ms::Checkpointer(wrong), ms::InvalidArgument);
}

TEST_CASE("a rank that cannot write in finish() says so, and its step stays in memory") {
  InProcessJob job(1);
  auto options = job.options(0);
  ms::FaultyFileSystem disk(*options.file_system);
  options.file_system = &disk;
  State state;
  {
    ms::Checkpointer ckpt(options);
    (void)ckpt.recover(state.dict);
    require(stage(ckpt, state, 1) == DiskOutcome::kNotDue, "not due");
    disk.fail(ms::FileOperation::kSync, 1, ENOSPC);
    CHECK_THROWS_AS(ckpt.finish(), ms::IoError);
    ckpt.finish();  // there is room now
  }
  CHECK(on_disk(job) == Steps{1});
}

TEST_CASE("every n-th complete step goes to disk, also when a rank dies in between") {
  InProcessJob job(2);
  std::barrier both(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    const auto options = [&] {
      auto o = job.options(rank);
      o.persist_every = 4;
      return o;
    };
    State state;
    Steps to_disk;
    auto ckpt = std::make_unique<ms::Checkpointer>(options());
    (void)ckpt->recover(state.dict);  // step 0 is the first that is complete
    const auto steps = [&](std::uint64_t from, std::uint64_t to) {
      for (std::uint64_t step = from; step <= to; ++step) {
        if (stage(*ckpt, state, step) == DiskOutcome::kEverywhere) to_disk.push_back(step);
      }
    };
    steps(1, 4);
    both.arrive_and_wait();
    if (rank == 0) {  // the root, which counts: its replacement does not know where it was
      ckpt.reset();
      ckpt = std::make_unique<ms::Checkpointer>(options());
    } else {
      ckpt->rejoin();
    }
    require(ckpt->recover(state.dict).step == 4, "step 4");
    steps(5, 12);
    ckpt->finish();
    require(to_disk == Steps{3, 7, 11}, "steps 3, 7 and 11");
  }));
}

TEST_CASE("what one rank wants on disk is there on every rank") {
  InProcessJob job(3);
  std::barrier all(3);
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    auto options = job.options(rank);
    options.persist_every = 0;
    ms::Checkpointer ckpt(options);
    State state;
    (void)ckpt.recover(state.dict);
    for (std::uint64_t step = 1; step <= 4; ++step) {
      if (rank == 2 && step == 3) ckpt.persist_now();
      const auto disk = stage(ckpt, state, step);
      require(disk == (step == 3 ? DiskOutcome::kEverywhere : DiskOutcome::kNotDue), "its disk");
      all.arrive_and_wait();
    }
    ckpt.finish();
  }));
  CHECK(on_disk(job) == Steps{3});
}

TEST_CASE("one rank wishes the job to end, and all end with the same step, on disk") {
  const int world = GENERATE(1, 3);
  const bool overlap = GENERATE(false, true);
  InProcessJob job(world);
  Steps ended(static_cast<std::size_t>(world));
  all_good(run_ranks(all_ranks(world), [&](int rank) {
    auto options = job.options(rank);
    options.persist_every = 1000;
    ms::Checkpointer ckpt(options);
    State state;
    const auto body = [&](ms::RunStep& step) {
      float one = 1;
      ms::collectives::all_reduce(step.group(), std::span(&one, 1),
                                  ms::collectives::ReduceOp::kSum);
      step.before_update();
      state.weight.data<float>()[0] += one;
      if (rank == world - 1 && step.number() == 4) ckpt.request_termination();
    };
    ended[static_cast<std::size_t>(rank)] =
        ckpt.run(state.dict, 1000, body, {.stage_every = 3, .overlap = overlap});
  }));
  // The wish goes with the vote on step 3, if that is not cast yet, or on step 6.
  CHECK((ended.front() == 6 || ended.front() == 9));
  for (const auto step : ended) CHECK(step == ended.front());
  CHECK(on_disk(job) == Steps{ended.front()});
}

TEST_CASE("SIGTERM ends a run like that, if it is asked to") {
  const auto before = std::signal(SIGTERM, SIG_DFL);  // the test program has one
  InProcessJob job(1);
  State state;
  const auto body = [](ms::RunStep& step) {
    if (step.number() == 4) (void)std::raise(SIGTERM);
  };
  std::uint64_t ended = 0;
  {
    ms::Checkpointer ckpt(job.options(0));
    ended = ckpt.run(state.dict, 1000, body, {.stage_every = 3, .on_terminate = true});
  }
  CHECK((ended == 6 || ended == 9));
  CHECK(on_disk(job) == Steps{ended});
  struct sigaction present{};
  REQUIRE(::sigaction(SIGTERM, nullptr, &present) == 0);
  CHECK(present.sa_handler == SIG_DFL);  // as it was
  (void)std::signal(SIGTERM, before);
}

TEST_CASE("a handler that the program has is left alone") {
  static volatile std::sig_atomic_t came = 0;
  InProcessJob job(1);
  State state;
  const auto before = std::signal(SIGTERM, [](int) { came = 1; });
  {
    ms::Checkpointer ckpt(job.options(0));
    const auto body = [](ms::RunStep& step) {
      if (step.number() == 4) (void)std::raise(SIGTERM);
    };
    CHECK(ckpt.run(state.dict, 20, body, {.stage_every = 3, .on_terminate = true}) == 20);
  }
  (void)std::signal(SIGTERM, before);
  CHECK(came == 1);
}
