// A job that is started anew while all its processes are still there, as after SIGSTOP.
#include <chrono>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using namespace std::chrono_literals;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::HangingStore;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;

/// The ranks of one start. They stay until the end, and hang from hang() on: as a process that is
/// stopped they answer nobody who asks whether they live.
class Start {
 public:
  Start(InProcessJob& job, std::uint64_t finds, const std::vector<std::uint64_t>& stages)
      : ranks_(static_cast<std::size_t>(job.world_size())),
        store_(std::make_shared<HangingStore>(job.store())) {
    all_good(run_ranks(all_ranks(job.world_size()), [&](int rank) {
      auto& ckpt = ranks_[static_cast<std::size_t>(rank)];
      auto options = job.options(rank, fabric_);
      options.deadline = 2s;  // a start beside it waits for half of that
      options.store_object = store_;
      ckpt = std::make_unique<ms::Checkpointer>(std::move(options));
      (void)recover_to(*ckpt, finds);
      stage_all(*ckpt, stages);
    }));
  }
  Start(const Start&) = delete;
  Start& operator=(const Start&) = delete;
  ~Start() { store_->go_on(); }
  void hang() { store_->hang(); }
  void wake_up() { store_->go_on(); }
  /// What each rank's finish() threw.
  std::vector<std::string> finish() {
    return run_ranks(all_ranks(static_cast<int>(ranks_.size())),
                     [&](int rank) { ranks_[static_cast<std::size_t>(rank)]->finish(); });
  }

 private:
  ms::InProcessFabric fabric_;  // no newer process of a rank cuts these off
  std::vector<std::unique_ptr<ms::Checkpointer>> ranks_;
  const std::shared_ptr<HangingStore> store_;
};

/// Forms a generation, and ends before it has recovered anything.
void start_and_end(InProcessJob& job) {
  all_good(run_ranks(all_ranks(job.world_size()), [&](int rank) {
    auto options = job.options(rank);
    options.deadline = 2s;
    const ms::Checkpointer ckpt(std::move(options));
  }));
}

}  // namespace

TEST_CASE("a job whose processes all hang is started anew from what they hold") {
  const int world = GENERATE(1, 2, 3);
  InProcessJob job(world);
  Start hung(job, 0, {1, 2});
  hung.hang();
  const Start next(job, 2, {3});
}

TEST_CASE(
    "what processes held that hung when the job was started anew is found once they are gone") {
  const int world = GENERATE(1, 2, 3);
  InProcessJob job(world);
  {
    Start hung(job, 0, {1, 2});
    hung.hang();
    start_and_end(job);
  }
  {
    const Start next(job, 2, {3});
  }
  {
    const Start last(job, 3, {});
  }
  for (const auto& name : job.disk().list("/vault")) {
    if (name.find("-i1-") != std::string::npos) FAIL(name << " is left over");
  }
}

TEST_CASE("a job that hung while it was started anew does not finish when it wakes up") {
  const int world = GENERATE(1, 2, 3);
  InProcessJob job(world);
  Start hung(job, 0, {1, 2});
  hung.hang();
  Start next(job, 2, {3});
  hung.wake_up();
  for (const auto& error : hung.finish()) CHECK_THAT(error, contains_text("fenced: "));
  all_good(next.finish());
}

TEST_CASE("starts that follow one another, each beside all that hung before, lose nothing") {
  InProcessJob job(2);
  std::list<Start> all;
  for (std::uint64_t step = 0; step < 6; step += 2) {
    all.emplace_back(job, step, std::vector<std::uint64_t>{step + 1, step + 2}).hang();
  }
  all.clear();
  const Start last(job, 6, {7});
}
