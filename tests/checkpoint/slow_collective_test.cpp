// Slow is not dead, for the trainer's collectives: a rank that waits for a third rank waits as long
// as bytes of the collectives move between any two. Where none move, the waits end.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/generation/number.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"
#include "tests/support/slow_wire.hpp"

namespace {

namespace ms = meshstage;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::SlowWire;

constexpr auto kDeadline = 500ms;
/// After this long without a byte a wait in a collective ends.
constexpr auto kLimit = kDeadline + 1s;

/// A job with a slow wire between the ranks 1 and 3, for collectives.
class SlowJob {
 public:
  explicit SlowJob(int world) : inner_(world) {}

  ms::CheckpointerOptions options(int rank) {
    auto o = inner_.options(rank);
    o.deadline = kDeadline;
    o.transport = wire.wrap(std::move(o.transport));
    return o;
  }
  /// Slow until two limits have passed.
  void slow_for_long() {
    wire.on_count = [this, until = Clock::now() + 2 * kLimit] {
      if (Clock::now() > until) wire.set(SlowWire::Pace::kFast);
    };
    wire.set(SlowWire::Pace::kSlow);
  }

  SlowWire wire{[](const std::string& group, int rank, int peer) {
    return group == "train" && std::max(rank, peer) == 3 && std::min(rank, peer) == 1;
  }};

 private:
  InProcessJob inner_;
};

void require_one_generation(const ms::Checkpointer& ckpt) {
  require(ms::generation_in_run(ckpt.generation()) == 1, "a rank was lost");
}

/// Rank r's r + 1 becomes everybody's list.
void gather(ms::ProcessGroup& group, ms::Deadline deadline) {
  const int mine = group.rank() + 1;
  std::vector<int> all(static_cast<std::size_t>(group.size()));
  ms::collectives::all_gather(group, std::as_bytes(std::span(&mine, 1)),
                              std::as_writable_bytes(std::span(all)), deadline);
  for (std::size_t r = 0; r < all.size(); ++r) {
    require(all[r] == static_cast<int>(r) + 1, "all_gather");
  }
}

void reduce(ms::ProcessGroup& group, ms::Deadline deadline) {
  float sum = 1;
  ms::collectives::all_reduce(group, std::span(&sum, 1), ms::collectives::ReduceOp::kSum, deadline);
  require(sum == static_cast<float>(group.size()), "all_reduce");
}

/// How a collective ended that should not go on.
struct Ended {
  int named = -1;       ///< by PeerSilent
  std::string problem;  ///< Empty: it ended as it should.
};
/// Does not throw: the other ranks wait for this one.
template <class F>
Ended ended(F&& collective) {
  const auto begin = Clock::now();
  try {
    collective();
    return {-1, "the collective did not end"};
  } catch (const ms::PeerSilent& e) {
    const auto length = Clock::now() - begin;
    Ended result{e.rank().value_or(-1), ""};
    const std::string text = e.what();
    if (text.find("at any rank") == std::string::npos) result.problem += text;
    if (length < kDeadline) result.problem += "it ended early";
    if (length > 4 * kLimit) result.problem += "it took too long";
    return result;
  } catch (const ms::Error& e) {
    return {-1, e.what()};
  }
}

/// Lets all ranks go on when `change` is made, after all have come here.
class Turn {
 public:
  explicit Turn(
      std::ptrdiff_t ranks, std::function<void()> change = [] {})
      : barrier_(ranks, Change{std::move(change)}) {}
  void wait() { barrier_.arrive_and_wait(); }

  /// A rank's part: if an exception ends the rank, the others do not wait for it.
  class Rank {
   public:
    explicit Rank(Turn& turn) : turn_(turn) {}
    Rank(const Rank&) = delete;
    Rank& operator=(const Rank&) = delete;
    ~Rank() {
      if (std::uncaught_exceptions() > before_) turn_.barrier_.arrive_and_drop();
    }

   private:
    Turn& turn_;
    const int before_ = std::uncaught_exceptions();
  };

 private:
  struct Change {
    std::function<void()> make;
    void operator()() noexcept { make(); }
  };
  std::barrier<Change> barrier_;
};

}  // namespace

TEST_CASE("a collective outlasts the limit at ranks that wait for third ranks, while bytes move") {
  SlowJob job(4);
  const auto collective = GENERATE(gather, reduce);
  // A deadline that is later than the limit makes no difference.
  const auto length = GENERATE(ms::Deadline::Clock::duration::max(), 60s);
  Turn slow(4, [&] { job.slow_for_long(); });
  all_good(run_ranks(all_ranks(4), [&](int rank) {
    const Turn::Rank part(slow);
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    const auto group = ckpt.group();
    reduce(*group, ms::Deadline::never());
    slow.wait();
    const auto begin = Clock::now();
    collective(*group, ms::Deadline::after(length));
    require(Clock::now() - begin > kLimit, "the wire was not slow");
    require_one_generation(ckpt);
    ckpt.finish();
  }));
}

TEST_CASE("a collective ends at every rank when no bytes move between any two") {
  SlowJob job(4);
  Turn silent(4, [&] { job.wire.set(SlowWire::Pace::kSilent); });
  // No rank leaves before all have ended: those that still wait would see its end.
  Turn over(4, [&] { job.wire.set(SlowWire::Pace::kFast); });
  all_good(run_ranks(all_ranks(4), [&](int rank) {
    const Turn::Rank part(silent), other(over);
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    const auto group = ckpt.group();
    reduce(*group, ms::Deadline::never());
    silent.wait();
    const auto end = ended([&] { gather(*group, ms::Deadline::never()); });
    over.wait();
    require(end.problem.empty(), end.problem);
    const std::vector<int> waits_for{1, 3, 0, 1};
    require(end.named == waits_for[static_cast<std::size_t>(rank)],
            "rank " + std::to_string(end.named) + " is named");
    (void)recover_to(ckpt.rejoin(), 0);
    reduce(*ckpt.group(), ms::Deadline::never());
    ckpt.finish();
  }));
}

TEST_CASE("a rank whose trainer hangs outside the collectives is found by those that wait for it") {
  InProcessJob job(3);
  Turn found(3);
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    const Turn::Rank part(found);
    auto o = job.options(rank);
    o.deadline = kDeadline;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    const auto group = ckpt.group();
    reduce(*group, ms::Deadline::never());
    Ended end{0, ""};
    if (rank != 0) end = ended([&] { reduce(*group, ms::Deadline::never()); });
    found.wait();  // rank 0's trainer hangs until then
    require(end.problem.empty(), end.problem);
    require(end.named == 0, "rank " + std::to_string(end.named) + " is named");
    (void)recover_to(ckpt.rejoin(), 0);
    reduce(*ckpt.group(), ms::Deadline::never());
    ckpt.finish();
  }));
}
