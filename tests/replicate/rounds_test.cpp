// What one trainer does, or fails to do, and what becomes of the other ranks' steps.
#include <cerrno>
#include <future>
#include <string>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::state_of;

constexpr std::chrono::seconds kLong(10);

/// What the E that `call` throws says. Throws InvalidState if it throws another type, or nothing.
template <class E, class Call>
std::string thrown(Call&& call) {
  try {
    call();
  } catch (const E& e) {
    return e.what();
  } catch (const std::exception& e) {
    ms::test::fail_test(std::string("an error of another type: ") + e.what());
  }
  ms::test::fail_test("nothing was thrown");
}

}  // namespace

TEST_CASE("three ranks, two copies, one leaves out every other step: nobody is lost") {
  constexpr std::uint64_t kSteps = 3000;
  InProcessJob job(3);
  std::vector<ms::Stats> stats(3);
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    auto o = job.options(rank);
    o.holders = {{1, 2}, {2, 0}, {0, 1}};
    o.persist_every = 0;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    const ms::Dict state = state_of(rank, 0, 100);
    for (std::uint64_t step = 1; step <= kSteps; ++step) {
      if (rank == 2 && step % 2 == 1) continue;
      auto staging = ckpt.stage(state, step);
      const auto outcome = staging.outcome().get();
      require(step % 2 == 1 || outcome == ms::Outcome::kComplete,
              "step " + std::to_string(step) + " failed");
    }
    stats[static_cast<std::size_t>(rank)] = ckpt.stats();
    ckpt.finish();
  }));
  for (const auto& s : stats) CHECK(s.complete == kSteps / 2 + 1);  // and step 0
}

TEST_CASE("a stage() that throws is that rank's no, told at once") {
  InProcessJob job(2);
  std::promise<void> threw;
  std::promise<void> failed;  // rank 0 stages nothing until then: its next stage() is a no, too
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    ms::FaultyFileSystem fs(*o.file_system);
    o.file_system = &fs;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    if (rank == 0) {
      // A larger state asks for room anew.
      fs.fail(ms::FileOperation::kFreeSpace, 1, EIO);
      (void)thrown<ms::Error>([&] { (void)ckpt.stage(state_of(rank, 2, 50'000), 2); });
      threw.set_value();
      require(failed.get_future().wait_for(kLong) == std::future_status::ready,
              "rank 1 has no outcome of step 2");
    } else {
      threw.get_future().wait();
      auto staging = ckpt.stage(state_of(rank, 2), 2);
      require(staging.outcome().get(ms::Deadline::after(kLong)) == ms::Outcome::kFailed,
              "step 2 is complete");
      failed.set_value();
    }
    stage_all(ckpt, {3});
    ckpt.finish();
  }));
}

TEST_CASE("a step that failed here ends once: the next one is not taken for ended, too") {
  InProcessJob job(2);
  std::promise<void> failed;  // so the room that fails is rank 0's own, not that of its ward
  std::promise<void> busy;
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    ms::FaultyFileSystem fs(*o.file_system);
    o.file_system = &fs;
    o.when_busy = ms::WhenBusy::kSkip;
    if (rank == 0) {
      // Step 2 has failed, and the loop is held there until the trainer is in the next stage().
      o.observer = [&fs, &failed](const ms::PointEvent& e) {
        if (e.point != ms::Point::kFailed || e.id.step != 2) return;
        failed.set_value();
        fs.wait_until_blocked();
        fs.unblock();
      };
    }
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    if (rank == 0) fs.fail(ms::FileOperation::kReserve, 1, ENOSPC);
    if (rank == 1) failed.get_future().wait();
    auto staging = ckpt.stage(state_of(rank, 2, 50'000), 2);
    require(staging.outcome().get() == ms::Outcome::kFailed, "step 2 is complete");
    if (rank == 0) {
      fs.block(ms::FileOperation::kFreeSpace);  // a still larger state asks for room anew
      staging = ckpt.stage(state_of(rank, 3, 100'000), 3);
      auto next = ckpt.stage(state_of(rank, 4, 100'000), 4);
      require(next.outcome().get() == ms::Outcome::kSkipped, "step 4 was not skipped");
      busy.set_value();
    } else {
      require(busy.get_future().wait_for(std::chrono::seconds(30)) == std::future_status::ready,
              "rank 0 never skipped step 4");
      staging = ckpt.stage(state_of(rank, 3), 3);
    }
    (void)staging.outcome().get();  // complete, or failed because rank 0 was past it
    stage_all(ckpt, {5});
    ckpt.finish();
  }));
}

TEST_CASE("finish() fails the steps that its rank never staged") {
  const int leaves_out = GENERATE(0, 1, 2);
  InProcessJob job(3);
  std::promise<void> staged;
  const auto offered = staged.get_future().share();
  const bool first = GENERATE(true, false);  // finish() comes before the others stage
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    if (rank == leaves_out) {
      if (!first) offered.wait();
      ckpt.finish();
      return;
    }
    auto staging = ckpt.stage(state_of(rank, 2), 2);
    if (rank == (leaves_out + 1) % 3) staged.set_value();
    require(staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20))) ==
                ms::Outcome::kFailed,
            "step 2 is complete");
    ckpt.finish();
  }));
  INFO(job.log());
  CHECK(job.disk().list("/vault") == std::vector<std::string>{});
}

TEST_CASE("a rank that does not call recover() is named to the others, until all rejoin") {
  const int late = GENERATE(0, 1, 2);
  InProcessJob job(3);
  std::promise<void> found;
  const auto over = found.get_future().share();
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    {
      ms::Checkpointer before(job.options(rank));
      (void)recover_to(before, 0);
      stage_all(before, {1});
    }
    auto o = job.options(rank);
    if (rank == (late + 1) % 3) o.forming_deadline = std::chrono::seconds(2);
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_of(rank, 0);
    if (rank == late) over.wait();
    const auto recover = [&] { (void)ckpt.recover(state); };
    const auto first = thrown<ms::PeerSilent>(recover);
    const std::string who = "rank " + std::to_string(late);
    require(first.find(who + " has not called recover()") != std::string::npos, first);
    require(thrown<ms::PeerSilent>(recover) == first, "recover() threw another error");
    require(thrown<ms::PeerSilent>([&] { (void)ckpt.stage(state, 2); }) == first, "stage() did");
    require(thrown<ms::PeerSilent>([&] { (void)ckpt.finish(); }) == first, "finish() did");
    if (rank == (late + 1) % 3) found.set_value();
    (void)recover_to(ckpt.rejoin(), 1);
    stage_all(ckpt, {2});
    ckpt.finish();
  }));
}

TEST_CASE("held() of a rank whose peers have left says so") {
  for (int round = 0; round < 60; ++round) {
    InProcessJob job(2);
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      ms::Checkpointer ckpt(job.options(rank));
      (void)recover_to(ckpt, 0);
      stage_all(ckpt, {1});
      if (rank == 0) return;
      const auto error = thrown<ms::PeerLost>([&] {
        while (true) require(ckpt.held(0).id.step == 1, "another step is held");
      });
      require(error.find("rank 0") != std::string::npos, error);
    }));
  }
}
