// Before a job's first complete step: nobody's recover() returns before step 0 is complete, so
// whoever dies, survivors and replacements begin with the same bits. tests/examples kills real
// ranks at each point of that.
#include <atomic>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/os/available_processors.hpp>
#include <meshstage/core/stage/pace.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/failing_pace.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::difference;
using ms::test::FailingPace;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::state_of;

/// The first thread that copies waits until another one copies, too.
class TwoThreads final : public ms::Pace {
 public:
  void before(std::uint64_t, ms::Watermark&) override {
    ms::MutexLock lock(mutex_);
    threads_.insert(std::this_thread::get_id());
    changed_.notify_all();
    (void)changed_.wait_until(lock, ms::Deadline::after(std::chrono::seconds(20)),
                              [this]() MESHSTAGE_REQUIRES(mutex_) { return threads_.size() > 1; });
  }
  [[nodiscard]] std::size_t threads() {
    const ms::MutexLock lock(mutex_);
    return threads_.size();
  }

 private:
  ms::Mutex mutex_;
  ms::CondVar changed_;
  std::set<std::thread::id> threads_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace

TEST_CASE("several threads copy the first step, for which the trainer waits") {
  if (ms::available_processors().count() < 2) return;
  InProcessJob job(1);
  auto options = job.options(0);
  TwoThreads pace;
  options.pace = &pace;
  options.copy_threads = 0;
  ms::Checkpointer ckpt(options);
  ms::Dict state{{"w", ms::Tensor::zeros({4 << 20}, ms::DType::kF32)}};
  CHECK(ckpt.recover(state).step == 0);
  CHECK(pace.threads() > 1);
  ckpt.finish();
}

TEST_CASE("a rank that dies before it recovers finds nobody trained on without it") {
  const int world = GENERATE(2, 3);
  const int lost = GENERATE(0, 1);
  InProcessJob job(world);
  std::vector<int> returned(static_cast<std::size_t>(world));
  const auto errors = run_ranks(all_ranks(world), [&](int rank) {
    if (rank == lost) {
      const ms::Checkpointer formed(job.options(rank));
    }
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = state_of(rank, 0);
    while (true) {
      try {
        const auto recovered = ckpt.recover(state);
        ++returned[static_cast<std::size_t>(rank)];
        ms::test::require(recovered.step == 0, "recovered another step than 0");
        break;
      } catch (const ms::RejoinNeeded&) {
        ckpt.rejoin();
      }
    }
    stage_all(ckpt, {1, 2});
    ckpt.finish();
  });
  all_good(errors);
  CHECK(returned == std::vector<int>(static_cast<std::size_t>(world), 1));
}

TEST_CASE("a death before the first staged step gives everybody the bits of the beginning") {
  InProcessJob job(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    {
      ms::Checkpointer ckpt(job.options(rank));
      ms::Dict state = state_of(rank, 0);
      const auto first = ckpt.recover(state);
      ms::test::require(first.source == ms::Source::kNothing, "there was something");
      if (rank == 0) {
        // It has changed its tensors, and rank 1 is gone, before anything was staged by the
        // trainer.
        ms::Dict changed = state_of(rank, 3);
        try {
          (void)ckpt.stage(changed, 3).outcome().get(ms::Deadline::after(std::chrono::seconds(20)));
        } catch (const ms::RejoinNeeded&) {
        }
        const auto again = ckpt.rejoin().recover(changed);
        ms::test::require(again.step == 0, "another step than 0");
        ms::test::require(again.source == ms::Source::kOwnMemory, "not from memory");
        if (const auto d = difference(changed, state_of(rank, 0)); !d.empty()) {
          ms::test::fail_test("not the beginning: " + d);
        }
        stage_all(ckpt, {1});
        ckpt.finish();
        return;
      }
    }
    job.wipe(rank);  // with its vault: step 0 comes from its holder
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict other = state_of(rank, 7);
    const auto recovered = ckpt.recover(other);
    ms::test::require(recovered.step == 0 && recovered.source == ms::Source::kHolderMemory,
                      "not step 0 from the holder");
    if (const auto d = difference(other, state_of(rank, 0)); !d.empty()) {
      ms::test::fail_test("not the beginning: " + d);
    }
    stage_all(ckpt, {1});
    ckpt.finish();
  });
  all_good(errors);
}

TEST_CASE("a step 0 that fails on one rank is tried again by all ranks, three times") {
  const int failing = GENERATE(1, 3);  // so many attempts fail
  InProcessJob job(2);
  std::vector<int> attempts(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto options = job.options(rank);
    FailingPace pace;  // copying fails, so nothing of the step is left for the next recovery
    if (rank == 1) options.pace = &pace;
    ms::Checkpointer ckpt(options);
    while (true) {
      pace.fails = attempts[static_cast<std::size_t>(rank)]++ < failing;
      try {
        (void)recover_to(ckpt, 0);
        break;
      } catch (const ms::RejoinNeeded& e) {
        if (e.rank()) throw;  // nobody is to blame
        ckpt.rejoin();
      }
    }
    stage_all(ckpt, {1});
    ckpt.finish();
  });
  if (failing == 1) {
    all_good(errors);
    CHECK(attempts == std::vector<int>{2, 2});
    return;
  }
  for (const auto& error : errors) {
    CHECK_THAT(error, contains_text("invalid state: recover() gives up: 3 times in a row"));
  }
}
