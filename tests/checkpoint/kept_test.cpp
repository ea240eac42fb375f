// What a holder's slot has already does not travel: frozen weights, step after step.
#include <barrier>

#include "tests/support/catch.hpp"
#include "tests/support/disk_contents.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_ranks;
using ms::test::flip;
using ms::test::InProcessJob;
using ms::test::read_all;
using ms::test::require;
using ms::test::run_ranks;

ms::Deadline in_time() { return ms::Deadline::after(std::chrono::seconds(20)); }

constexpr std::uint64_t kFrozenBytes = 64 * 4096;

/// 64 blocks that never change, one that does.
ms::Dict state_of(int rank, std::uint64_t step) {
  auto frozen = ms::Tensor::arange<std::int32_t>(kFrozenBytes / 4);
  frozen.data<std::int32_t>()[0] = rank;
  auto trained = ms::Tensor::zeros({512}, ms::DType::kI64);
  for (auto& element : trained.span<std::int64_t>()) element = static_cast<std::int64_t>(step);
  return {{"frozen", frozen}, {"trained", trained}};
}

ms::Outcome stage(ms::Checkpointer& ckpt, std::uint64_t step) {
  return ckpt.stage(state_of(ckpt.rank(), step), step).outcome().get(in_time());
}

void recover_to(ms::Checkpointer& ckpt, std::uint64_t step) {
  // Where there is nothing to recover the state stays as it is.
  ms::Dict state = state_of(step == 0 ? ckpt.rank() : ckpt.rank() + 7, 0);
  require(ckpt.recover(state).step == step, "another step came back");
  require(ms::test::difference(state, state_of(ckpt.rank(), step)).empty(),
          "another state came back");
}

ms::CheckpointerOptions options_of(InProcessJob& job, int rank) {
  auto o = job.options(rank);
  o.persist_every = 0;
  return o;
}

}  // namespace

TEST_CASE("frozen weights travel once for each slot, and come back from a holder that kept them") {
  InProcessJob job(2);
  std::barrier everyone(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto ckpt = std::make_unique<ms::Checkpointer>(options_of(job, rank));
    recover_to(*ckpt, 0);                                                 // slot 0 has step 0
    require(stage(*ckpt, 1) == ms::Outcome::kComplete, "step 1 failed");  // slot 1
    require(ckpt->stats().replica_bytes_kept == 0, "fresh slots hold nothing");
    std::uint64_t sent = ckpt->stats().replica_bytes_sent;
    for (std::uint64_t step = 2; step <= 5; ++step) {
      require(stage(*ckpt, step) == ms::Outcome::kComplete, "a step failed");
      const auto stats = ckpt->stats();
      require(stats.replica_bytes_kept == (step - 1) * kFrozenBytes, "frozen weights travelled");
      require(stats.replica_bytes_sent - sent < 4 * 4096, "more travelled than has changed");
      sent = stats.replica_bytes_sent;
    }
    everyone.arrive_and_wait();
    if (rank == 1) {
      ckpt.reset();
      job.wipe(rank);
      ckpt = std::make_unique<ms::Checkpointer>(options_of(job, rank));
      recover_to(*ckpt, 5);
    } else {
      ckpt->rejoin();
      recover_to(*ckpt, 5);
    }
    // What lies in the slots was proven by the recovery, not by what came there before.
    const auto before = ckpt->stats().replica_bytes_kept;
    require(stage(*ckpt, 6) == ms::Outcome::kComplete, "step 6 failed");
    require(ckpt->stats().replica_bytes_kept == before, "kept across generations");
    ckpt->finish();
  });
  for (const auto& error : errors) CHECK(error == "");
}

TEST_CASE("a step that fails leaves nothing that the next one keeps") {
  InProcessJob job(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(options_of(job, rank));
    recover_to(ckpt, 0);
    for (std::uint64_t step = 1; step <= 3; ++step) {
      require(stage(ckpt, step) == ms::Outcome::kComplete, "a step failed");
    }
    // Rank 1 leaves step 4 out by throwing; rank 0's replica of it may have arrived or not.
    if (rank == 0) {
      require(stage(ckpt, 4) == ms::Outcome::kFailed, "complete, though a rank left it out");
    } else {
      ms::Dict cyclic;
      cyclic["self"] = cyclic;
      bool refused = false;
      try {
        (void)ckpt.stage(cyclic, 4);
      } catch (const ms::InvalidArgument&) {
        refused = true;
      }
      cyclic.clear();
      require(refused, "a cycle was staged");
    }
    const auto before = ckpt.stats().replica_bytes_kept;
    for (std::uint64_t step = 5; step <= 8; ++step) {
      require(stage(ckpt, step) == ms::Outcome::kComplete, "a step failed");
      const auto held = ckpt.held(1 - rank);
      require(ms::test::difference(held.state.as<ms::Dict>(), state_of(1 - rank, step)).empty(),
              "a holder has another state");
    }
    require(ckpt.stats().replica_bytes_kept >= before + 2 * kFrozenBytes, "nothing was kept");
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
}

TEST_CASE(
    "a kept block that rots in memory fails a step, travels again, and is whole from then on") {
  InProcessJob job(2);
  std::barrier everyone(2);
  std::vector<int> failed(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto ckpt = std::make_unique<ms::Checkpointer>(options_of(job, rank));
    recover_to(*ckpt, 0);
    for (std::uint64_t step = 1; step <= 4; ++step) {
      require(stage(*ckpt, step) == ms::Outcome::kComplete, "a step failed");
    }
    everyone.arrive_and_wait();
    if (rank == 0) {  // both slots that rank 1 has for rank 0, in the frozen weights
      int flipped = 0;
      for (const auto& [path, bytes] : read_all(job.disk(), "/vault")) {
        if (path.find("-r1-") == std::string::npos || path.find("-w0-") == std::string::npos)
          continue;
        flip(job.disk(), path, bytes.size() / 2);
        ++flipped;
      }
      require(flipped == 2, "not two slots");
    }
    everyone.arrive_and_wait();
    std::uint64_t newest = 0;
    for (std::uint64_t step = 5; step < 50; ++step) {
      if (stage(*ckpt, step) == ms::Outcome::kComplete) {
        newest = step;
      } else {
        ++failed[static_cast<std::size_t>(rank)];
      }
    }
    everyone.arrive_and_wait();
    if (rank == 0) {
      ckpt.reset();
      job.wipe(rank);
      ckpt = std::make_unique<ms::Checkpointer>(options_of(job, rank));
      recover_to(*ckpt, newest);
    } else {
      recover_to(ckpt->rejoin(), newest);
    }
    ckpt->finish();
  });
  for (const auto& error : errors) CHECK(error == "");
  CHECK(failed == std::vector<int>{2, 2});
  CHECK_THAT(job.log(), contains_text("has changed since it was received"));
}
