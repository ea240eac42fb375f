// The part `decisions` alone: what the root asks before it decides, and what an outcome changes.
#include <meshstage/core/comm/generation.hpp>

#include "tests/replicate/own_step_bench.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/store_keys.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using protocol::Mode;
using protocol::StoreAnswered;
using protocol::Verdict;
using test::InProcessJob;
using test::kStep;
using test::PartBench;
using test::soon;
using test::StepBench;
using test::TrainerStep;
using Found = StoreAnswered::Found;

constexpr auto kGeneration = PartBench::kGeneration;
constexpr SlotKey kSlot{0, 0};

}  // namespace

TEST_CASE("decisions: the root's question has each of its answers") {
  InProcessJob job(1);
  PartBench bench(job.options(0));
  const ImageId id{kGeneration, 5};
  const auto claim = [&](std::uint64_t number, const std::string& launch) {
    job.store()->set(test::claim_key(InProcessJob::kName, number), "1 " + launch + " 0 options",
                     soon());
  };
  const auto ask = [&] {
    bench.in_loop([&] { bench.decisions.ask_store({id, true}); });
    return bench.next();
  };
  bench.in_loop([&] { bench.engine.state.mode = Mode::kReady; });
  claim(kGeneration, "first");
  CHECK(ask().as<StoreAnswered>().found == Found::kNewest);
  CHECK(replicate::read_notes(*job.store(), InProcessJob::kName, soon()).complete == id);

  bench.store->fail();
  const auto unanswered = ask();
  CHECK(unanswered.as<StoreAnswered>().found == Found::kNothing);
  CHECK_THAT(unanswered.as<StoreAnswered>().why, contains_text("the store is gone"));
  bench.in_loop([&] { bench.engine.state.mode = Mode::kRecovering; });
  CHECK_THAT(ask().called, contains_text("lose_store: cannot ask the Store"));
  bench.store->go_on();

  claim(kGeneration + 1, "first");
  CHECK(ask().as<StoreAnswered>().found == Found::kSuperseded);
  claim(kGeneration + 2, "second");
  const auto fenced = ask();
  CHECK(fenced.as<StoreAnswered>().found == Found::kFenced);
  CHECK_THAT(fenced.as<StoreAnswered>().why, contains_text("second"));
}

TEST_CASE("decisions: a complete step goes to disk, and its end is known to every part") {
  InProcessJob job(2);
  StepBench bench(job.options(0));
  TrainerStep step(5);
  bench.request(step);
  CHECK(bench.next().as<protocol::OwnSealed>().id == kStep);
  const auto verdict = GENERATE(Verdict::kComplete, Verdict::kFailed);
  const bool complete = verdict == Verdict::kComplete;
  const bool persist = GENERATE(false, true);
  const protocol::AcceptReplica replica{1, 0, kStep, kNoImage, {4096, 4096, {}, 0, 0}};
  bool held = false;
  bench.in_loop([&] {
    bench.engine.state.own[0] = {protocol::Slot::State::kSealed, kStep, kNoImage};
    bench.inbox.abort({kStep});
    bench.decisions.announce({kStep, verdict, 1, "no room", {true, persist}});
    held = bench.slots.in_use(kSlot);
  });
  CHECK(step.staging.outcome().get(soon()) == (complete ? Outcome::kComplete : Outcome::kFailed));
  CHECK(held == (complete && persist));  // before the trainer can stage the next step
  CHECK(bench.engine.gate.end_agreed() == complete);
  CHECK(bench.engine.gate.stats().complete_step == (complete ? 5 : 0));
  if (held) {
    CHECK(bench.next().as<protocol::Persisted>().id == kStep);
    bench.in_loop([&] { bench.persister.all_on_disk(kStep); });
    CHECK(step.staging.persisted().get(soon()) == DiskOutcome::kEverywhere);
  }
  // The inbox forgets which steps failed up to a complete one.
  bench.in_loop([&] { bench.inbox.accept(replica); });
  const auto fed = bench.next();
  CHECK(std::holds_alternative<protocol::ReplicaReady>(fed.event) == complete);
}
