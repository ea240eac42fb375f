// Slow is not dead: over a link that still moves bytes every wait takes as long as it takes. What
// does not move is still found: a dead link, and a rank for which the others wait.
#include <atomic>
#include <barrier>
#include <chrono>
#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/protocol/codec.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/meddled_job.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"
#include "tests/support/slow_wire.hpp"

namespace {

namespace ms = meshstage;
namespace wire = meshstage::protocol;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::Bytes;
using ms::test::MeddledJob;
using ms::test::recover_fresh;
using ms::test::recover_to;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::SlowWire;
using ms::test::stage_all;
using ms::test::state_of;

constexpr auto kDeadline = 500ms;

/// A job whose images pass a SlowWire. It becomes fast again when a trainer has waited `times`
/// deadlines: before that no wait may have ended.
class SlowJob : public MeddledJob {
 public:
  explicit SlowJob(int world, std::uint32_t times = 3)
      : MeddledJob(world), world_(world), times_(times) {
    meddler.message = [this](int from, int, Bytes& bytes) {
      const auto message = wire::decode(wire_context(), from, bytes);
      const auto* overdue = std::get_if<wire::Overdue>(&message.body);
      if (overdue == nullptr) return;
      seen_ = std::max(seen_.load(), overdue->times);
      if (overdue->times >= times_) slow.set(SlowWire::Pace::kFast);
    };
  }
  ms::CheckpointerOptions options(int rank) {
    auto o = MeddledJob::options(rank);
    o.deadline = kDeadline;
    o.transport = slow.wrap(std::move(o.transport));
    for (int r = 0; two_copies && r < world_; ++r) {
      o.holders.push_back({(r + 1) % world_, (r + 2) % world_});
    }
    return o;
  }
  /// How often the longest wait went on for another deadline.
  [[nodiscard]] std::uint32_t seen() const { return seen_; }

  SlowWire slow;
  bool two_copies = false;

 private:
  const int world_;
  const std::uint32_t times_;
  std::atomic<std::uint32_t> seen_{0};
};

void require_one_generation(const ms::Checkpointer& ckpt) {
  require(ms::generation_in_run(ckpt.generation()) == 1,
          "a rank was lost: " + ms::generation_text(ckpt.generation()));
}

}  // namespace

TEST_CASE("stage() waits for a step whose images still move, for several deadlines") {
  const int world = GENERATE(2, 3);
  SlowJob job(world);
  job.two_copies = world == 3;
  all_good(run_ranks(all_ranks(world), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    if (rank == 0) job.slow.set(SlowWire::Pace::kSlow);
    auto one = ckpt.stage(state_of(rank, 1), 1);
    auto two = ckpt.stage(state_of(rank, 2), 2);
    require(one.outcome().get() == ms::Outcome::kComplete, "step 1 is not complete");
    ckpt.wait(two);
    require(two.outcome().ready(), "wait() did not wait");
    require(two.outcome().get() == ms::Outcome::kComplete, "step 2 is not complete");
    require_one_generation(ckpt);
    ckpt.finish();
  }));
  CHECK(job.seen() >= 3);
}

TEST_CASE("run() trains on over a link on which every image takes several deadlines") {
  const bool overlap = GENERATE(false, true);
  SlowJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = state_of(rank, 0);
    const auto body = [&](ms::RunStep& step) {
      float sum = 1;
      ms::collectives::all_reduce(step.group(), std::span(&sum, 1),
                                  ms::collectives::ReduceOp::kSum);
      step.before_update();
      if (rank == 0 && step.number() == 1) job.slow.set(SlowWire::Pace::kSlow);
    };
    require(ckpt.run(state, 4, body, {.overlap = overlap}) == 4, "run() ended early");
    require_one_generation(ckpt);
    require(ckpt.stats().complete == 5 && ckpt.stats().failed == 0, "a step is not complete");
  }));
  CHECK(job.seen() >= 3);
}

TEST_CASE("finish() waits for a step whose images still move, longer than the forming deadline") {
  SlowJob job(2, 2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.forming_deadline = 2s;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    if (rank == 0) job.slow.set(SlowWire::Pace::kSlow);
    auto one = ckpt.stage(state_of(rank, 1), 1);
    ckpt.finish();
    require(one.outcome().get() == ms::Outcome::kComplete, "step 1 is not complete");
    require_one_generation(ckpt);
  }));
  CHECK(job.seen() >= 2);
}

TEST_CASE("recover() fetches an image for longer than the forming deadline; the first step, too") {
  SlowJob job(2, 2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.forming_deadline = 2s;
    if (rank == 0) job.slow.set(SlowWire::Pace::kSlow);
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    require_one_generation(ckpt);
    stage_all(ckpt, {1});
  }));
  CHECK(job.seen() >= 2);
  job.wipe(1);
  job.slow.set(SlowWire::Pace::kSlow);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.forming_deadline = 2s;
    ms::Checkpointer ckpt(std::move(o));
    const auto recovered = recover_to(ckpt, 1);
    require(rank == 0 || recovered.source == ms::Source::kHolderMemory, "it was not fetched");
    require(ms::generation_in_run(ckpt.generation()) == 2, "a rank was lost");
    ckpt.finish();
  }));
}

TEST_CASE("a link on which nothing moves for a deadline is still a lost peer") {
  SlowJob job(2);
  std::atomic<int> named{0};
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    if (rank == 0) job.slow.set(SlowWire::Pace::kSilent);
    const auto begin = Clock::now();
    try {
      stage_all(ckpt, {1, 2});
      ms::test::fail_test("nobody was lost");
    } catch (const ms::PeerSilent& e) {
      if (e.rank() == 1 - rank) ++named;
    } catch (const ms::Fenced&) {  // NOLINT(bugprone-empty-catch): the other rank was faster
    }
    require(Clock::now() - begin < 20s, "it took too long");
  }));
  CHECK(named >= 1);
}

TEST_CASE("a rank that does not stage what the others staged is named, and may come back") {
  // Of four ranks 1 and 3 hold each other's replicas, so 0 and 2 hear nothing of rank 3's steps.
  const int hung = GENERATE(0, 1, 3);
  INFO("rank " << hung);
  SlowJob job(4);
  std::promise<void> all_found;
  std::atomic<int> found{0};
  std::barrier three(3);
  all_good(run_ranks(all_ranks(4), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    if (rank == hung) {
      all_found.get_future().wait();  // its trainer hangs
      try {
        stage_all(ckpt, {1});
        ms::test::fail_test("it was not left out");
      } catch (const ms::PeerSilent& e) {
        const std::string text = e.what();
        require(text.find("has not staged step 1") != std::string::npos, text);
      }
    } else {
      three.arrive_and_wait();  // or one that is late is named instead
      const auto begin = Clock::now();
      try {
        auto one = ckpt.stage(state_of(rank, 1), 1);
        if (rank % 2 == 0) {
          (void)ckpt.stage(state_of(rank, 2), 2);
        } else {
          ckpt.wait(one);
        }
        ms::test::fail_test("nobody was named");
      } catch (const ms::PeerSilent& e) {
        const std::string text = e.what();
        require(e.rank() == hung, "another rank is named: " + text);
        require(text.find("has not staged step 1") != std::string::npos, text);
        require(Clock::now() - begin < 20s, "it took too long");
      }
      if (++found == 3) all_found.set_value();
    }
    (void)recover_to(ckpt.rejoin(), 0);
    stage_all(ckpt, {1});
    ckpt.finish();
  }));
}
