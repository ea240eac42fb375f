// A rank that hangs inside Checkpointer::run(): its trainer alone, while the engine's threads go
// on, or all of it. stopped_rank_test.cpp stops whole processes.
#include <atomic>
#include <chrono>
#include <latch>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using namespace std::chrono_literals;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::HangingStore;
using ms::test::InProcessJob;
using ms::test::require;
using ms::test::run_ranks;

constexpr int kRanks = 3;
constexpr int kHangs = 1;
constexpr std::uint64_t kSteps = 8;

/// Happens once, or again.
class Event {
 public:
  void set() {
    happened_ = true;
    happened_.notify_all();
  }
  void wait() const { happened_.wait(false); }

 private:
  std::atomic<bool> happened_ = false;
};

/// Counts down at the end of a block, also if that throws: nobody waits for it for ever.
struct AtEnd {
  std::latch& latch;
  ~AtEnd() { latch.count_down(); }
};

/// Where rank 1 hangs.
enum class Where : std::uint8_t { kBeforeFirstStep, kStep, kRecovered };

/// One job of three ranks of which rank 1 hangs, once, until `wake`.
struct HangingJob {
  InProcessJob job{kRanks};
  const Where where;
  const bool silent;  ///< Nor does its process answer anybody who asks whether it lives.
  const std::shared_ptr<HangingStore> store = std::make_shared<HangingStore>(job.store());
  Event given_up;  ///< Rank 0 waits for rank 1 in the next generation, or has ended.
  Event wake;

  explicit HangingJob(Where there, bool with_process = false)
      : where(there), silent(with_process) {}

  void hang() {
    if (silent) store->hang();
    wake.wait();
    store->go_on();
  }

  /// Trains as `rank`. Throws unless it ends with the right sum.
  void live(int rank, bool hanging, std::chrono::seconds forming = 60s) {
    const std::unique_ptr<Event, void (*)(Event*)> at_end(rank == 0 ? &given_up : nullptr,
                                                          [](Event* event) { event->set(); });
    auto options = job.options(rank);
    options.deadline = 2s;
    options.forming_deadline = forming;
    if (hanging) options.store_object = store;
    if (rank == 0) {
      options.log = [this](const ms::LogLine& line) {
        if (line.text.find("waiting for ranks 1 of 3") != std::string::npos) given_up.set();
      };
    }
    ms::Checkpointer ckpt(options);
    ms::Tensor weight = ms::Tensor::zeros({1}, ms::DType::kF32);
    ms::Dict state{{"weight", weight}};
    const auto body = [&](ms::RunStep& step) {
      const std::uint64_t at = where == Where::kStep ? 4 : 0;
      if (hanging && where != Where::kRecovered && step.number() == at) {
        hanging = false;
        hang();
      }
      float add = static_cast<float>(rank + 1);
      ms::collectives::all_reduce(step.group(), std::span(&add, 1),
                                  ms::collectives::ReduceOp::kSum);
      step.before_update();
      weight.data<float>()[0] += add;
    };
    ms::RunOptions run{.stage_every = 3, .overlap = true};
    run.recovered = [&](const ms::Recovered&) {
      if (hanging && where == Where::kRecovered) {
        hanging = false;
        hang();
      }
    };
    require(ckpt.run(state, kSteps, body, run) == kSteps, "all steps are trained");
    require(weight.data<float>()[0] == kSteps * (1 + 2 + 3), "the sum has the right bits");
  }
};

}  // namespace

TEST_CASE("the replacement of a rank that hangs in run() takes its place, and it is fenced") {
  HangingJob hanging(GENERATE(Where::kBeforeFirstStep, Where::kStep, Where::kRecovered), true);
  constexpr int kReplacement = kRanks;
  std::latch trained(kRanks);
  const auto errors = run_ranks(all_ranks(kRanks + 2), [&](int number) {
    if (number > kReplacement) {
      trained.wait();
      hanging.wake.set();
      return;
    }
    if (number == kReplacement) hanging.given_up.wait();
    const int rank = number == kReplacement ? kHangs : number;
    if (number == kHangs) {
      hanging.live(rank, true);
      return;
    }
    const AtEnd at_end{trained};
    hanging.live(rank, false);
  });
  CHECK_THAT(errors[kHangs], contains_text("fenced: "));
  for (const int number : {0, 2, kReplacement}) {
    INFO("rank " << number);
    CHECK(errors[static_cast<std::size_t>(number)] == "");
  }
}

TEST_CASE("a rank that hangs in run() for a while comes back by itself, with the right bits") {
  HangingJob hanging(GENERATE(Where::kBeforeFirstStep, Where::kStep, Where::kRecovered));
  all_good(run_ranks(all_ranks(kRanks + 1), [&](int number) {
    if (number < kRanks) {
      hanging.live(number, number == kHangs);
      return;
    }
    hanging.given_up.wait();
    hanging.wake.set();
  }));
}

TEST_CASE(
    "nobody replaces a rank that hangs in run(): the others end with one error that names it") {
  HangingJob hanging(Where::kStep);
  const auto begin = std::chrono::steady_clock::now();
  std::latch ended(kRanks - 1);
  const auto errors = run_ranks(all_ranks(kRanks + 1), [&](int number) {
    if (number == kRanks) {
      ended.wait();
      hanging.wake.set();
      return;
    }
    if (number == kHangs) {
      hanging.live(number, true, 5s);
      return;
    }
    const AtEnd at_end{ended};
    hanging.live(number, false, 5s);
  });
  CHECK(std::chrono::steady_clock::now() - begin < 60s);
  for (const std::size_t rank : {0U, 2U}) {
    // One that is later by some milliseconds also names the one that gave up before it: 0.
    CHECK_THAT(errors[rank], contains_text("timeout: ") && (contains_text("did not come: 1") ||
                                                            contains_text("did not come: 0, 1")));
  }
  CHECK_THAT(errors[kHangs], contains_text("timeout: ") && contains_text("did not come: 0, 2"));
}
