// A job of 1,024 ranks, each a real Checkpointer with its own threads, over the in-process
// transport: stage, lose a rank with its memory, recover.
#include <atomic>
#include <chrono>
#include <iostream>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace ms = meshstage;
using namespace meshstage::test;

TEST_CASE("1,024 ranks stage, lose one with its memory, recover every bit, and go on") {
  constexpr int kWorld = 1024;
  constexpr int kLost = 700;
  // So many threads share a few processors that a thousandth of them each is what a rank gets.
  constexpr std::chrono::seconds kPatience{240};
  using Clock = std::chrono::steady_clock;
  InProcessJob job(kWorld);
  std::vector<ms::Source> sources(kWorld);
  std::atomic<int> staged{0};
  const auto start = Clock::now();
  const auto options = [&](int rank) {
    auto o = job.options(rank);
    o.deadline = kPatience;
    o.forming_deadline = kPatience;
    o.persist_every = 0;
    return o;
  };
  const auto go_on = [&](ms::Checkpointer& ckpt) {
    sources[static_cast<std::size_t>(ckpt.rank())] = recover_to(ckpt, 2).source;
    stage_all(ckpt, {3}, kPatience);
  };
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    {
      ms::Checkpointer ckpt(options(rank));
      recover_to(ckpt, 0);
      stage_all(ckpt, {1, 2}, kPatience);
      ++staged;
      staged.notify_all();
      if (rank != kLost) {
        bool named = false;
        try {
          // Until it hears of the death; no step can be complete without the dead rank.
          for (std::uint64_t step = 3;; ++step) {
            auto staging = ckpt.stage(state_of(rank, step), step);
            staging.outcome().wait(ms::Deadline::after(kPatience));
          }
        } catch (const ms::PeerLost& e) {
          named = e.rank() == kLost;
        }
        require(named, "no PeerLost that names the dead rank");
        go_on(ckpt.rejoin());
        return;
      }
      // All others have staged, too: what is recovered is then known.
      for (int seen = staged; seen < kWorld; seen = staged) staged.wait(seen);
      job.fabric().kill(rank);
    }
    job.wipe(rank);
    ms::Checkpointer replacement(options(rank));
    go_on(replacement);
  });
  for (std::size_t r = 0; r < errors.size(); ++r) {
    INFO("rank " << r);
    CHECK(errors[r] == "");
    CHECK(sources[r] ==
          (static_cast<int>(r) == kLost ? ms::Source::kHolderMemory : ms::Source::kOwnMemory));
  }
  std::cout << "1,024 ranks: " << std::chrono::duration<double>(Clock::now() - start).count()
            << " s\n";
}
