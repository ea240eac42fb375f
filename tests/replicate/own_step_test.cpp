// The part `own_step` alone: a step from the trainer's request to its outcome. The test is the
// trainer and the protocol.
#include <atomic>
#include <string>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/replicate/own_step_bench.hpp"
#include "tests/replicate/part_images.hpp"
#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using protocol::OwnFailed;
using protocol::OwnSealed;
using protocol::StageRequested;
using protocol::Verdict;
using test::error_of;
using test::FaultyRank;
using test::InProcessJob;
using test::kStep;
using test::paced;
using test::PartBench;
using test::soon;
using test::StepBench;
using test::TrainerStep;

constexpr auto kGeneration = PartBench::kGeneration;
constexpr SlotKey kSlot{0, 0};

}  // namespace

TEST_CASE("own_step: a step that is taken is copied and sealed, and its outcome is told once") {
  InProcessJob job(2);
  StepBench bench(job.options(0));
  TrainerStep step(5);
  const bool persist = GENERATE(false, true);
  bench.request(step);
  step.accepted.get(soon());
  step.staging.staged().get(soon());
  CHECK(bench.next().as<OwnSealed>().id == kStep);
  const auto image = test::image_of_step(0, 2, kStep);
  CHECK(test::has_sealed(bench.engine.vault, kSlot, image));
  CHECK(step.source_dropped());
  bench.in_loop([&] { CHECK_FALSE(bench.slots.in_use(kSlot)); });
  CHECK_FALSE(step.staging.outcome().ready());
  CHECK_FALSE(bench.step_ended());

  bench.announce(Verdict::kComplete, persist, {kGeneration, 4});  // of another step
  CHECK_FALSE(step.staging.outcome().ready());
  bench.announce(Verdict::kComplete, persist);
  CHECK(step.staging.outcome().get(soon()) == Outcome::kComplete);
  CHECK(bench.step_ended());
  CHECK(step.staging.persisted().ready() == !persist);
  bench.in_loop([&] { bench.own.persisted(kStep).set_value(DiskOutcome::kEverywhere); });
  CHECK(step.staging.persisted().get(soon()) ==
        (persist ? DiskOutcome::kEverywhere : DiskOutcome::kNotDue));
  bench.announce(Verdict::kComplete, persist);
  CHECK(bench.engine.gate.stats().complete == 1);
  CHECK(bench.nothing_fed());
}

TEST_CASE("own_step: a step that failed ends when its tensors are read, not before") {
  InProcessJob job(2);
  test::Gate pace;
  StepBench bench(paced(job.options(0), &pace));
  bench.at_end.emplace_back([&] { pace.open(); });
  TrainerStep step(5);
  bench.request(step);
  pace.wait_for_a_piece();
  bench.announce(Verdict::kFailed);
  CHECK(bench.logs("step 5 failed: rank 1 voted no: no room"));
  CHECK_FALSE(step.staging.outcome().ready());
  CHECK_FALSE(bench.step_ended());
  pace.open();
  CHECK(bench.next().as<OwnSealed>().id == kStep);
  CHECK(step.staging.outcome().get(soon()) == Outcome::kFailed);
  CHECK(step.staging.persisted().get(soon()) == DiskOutcome::kNotDue);
  CHECK(bench.step_ended());
  CHECK(bench.engine.gate.stats().failed == 1);
}

TEST_CASE("own_step: a step waits for its slot, but not for a disk that hangs") {
  InProcessJob job(2);
  auto options = job.options(0);
  const bool disk = GENERATE(false, true);
  if (disk) options.deadline = 200ms;
  StepBench bench(options);
  TrainerStep step(5);
  bench.in_loop([&] { disk ? bench.slots.hold_for_disk({&kSlot, 1}) : bench.slots.hold(kSlot); });
  bench.request(step);
  step.accepted.get(soon());  // the protocol has taken it
  if (!disk) {
    CHECK(bench.nothing_fed());
    bench.in_loop([&] { bench.slots.release(kSlot); });
    CHECK(bench.next().as<OwnSealed>().id == kStep);
    return;
  }
  const auto failed = bench.next();
  CHECK(failed.as<OwnFailed>().id == kStep);
  CHECK_THAT(failed.as<OwnFailed>().why, contains_text("written to disk"));
  step.staging.staged().get(soon());  // its tensors were not read, and will not be
  CHECK(step.source_dropped());
  bench.announce(Verdict::kFailed);
  CHECK(step.staging.outcome().get(soon()) == Outcome::kFailed);
  CHECK(bench.step_ended());
  bench.in_loop([&] { bench.slots.release_from_disk({&kSlot, 1}); });
  CHECK(bench.nothing_fed());
  CHECK(bench.engine.vault.slot(kSlot).state == SlotState::kEmpty);
}

TEST_CASE("own_step: neither a slot without room nor a copy that fails takes the next step along") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  struct Throwing final : Pace {
    std::atomic<bool> throws{false};
    void before(std::uint64_t, Watermark&) override {
      if (throws) throw IoError("the pace");
    }
  } pace;
  StepBench bench(paced(options, &pace));
  const bool copy = GENERATE(false, true);
  copy ? pace.throws = true : (disk.fail(FileOperation::kReserve, 1, ENOSPC), false);
  TrainerStep step(5);
  bench.request(step);
  const auto failed = bench.next();
  CHECK(failed.as<OwnFailed>().id == kStep);
  CHECK_THAT(failed.as<OwnFailed>().why, contains_text(copy ? "the pace" : "memory"));
  CHECK(error_of(step.staging.staged()) == (copy ? ErrorKind::kIo : ErrorKind::kOutOfMemory));
  CHECK(step.source_dropped());
  bench.announce(Verdict::kFailed);
  CHECK(step.staging.outcome().get(soon()) == Outcome::kFailed);
  CHECK(bench.step_ended());
  CHECK(bench.engine.vault.slot(kSlot).state != SlotState::kSealed);

  pace.throws = false;
  TrainerStep after(6);
  bench.request(after);
  CHECK(bench.next().as<OwnSealed>().id == ImageId{kGeneration, 6});
}

TEST_CASE("own_step: a request that the protocol refuses, or that failed already, has its answer") {
  InProcessJob job(2);
  StepBench bench(job.options(0));
  TrainerStep step(5);
  const protocol::Refuse refusal{protocol::Refuse::Reason::kNotAbove, "5 is not above 5"};
  SECTION("it is refused") {
    const bool lost = GENERATE(false, true);
    if (lost) bench.engine.gate.lose({ErrorKind::kPeerLost, 1, "rank 1 died"});
    bench.answer = [&](ImageId) { bench.own.refuse(refusal); };
    if (lost) {
      bench.in_loop([&] { bench.own.request(step.job); });
    } else {
      bench.request(step);
    }
    if (lost) (void)bench.next().as<StageRequested>();
    CHECK(error_of(step.accepted) == (lost ? ErrorKind::kPeerLost : ErrorKind::kInvalidState));
  }
  SECTION("another rank's no came before") {
    bench.answer = [&](ImageId id) {
      bench.own.announce({id, Verdict::kFailed, 1, "no room", {}});
    };
    bench.request(step);
    step.accepted.get(soon());
    step.staging.staged().get(soon());
    CHECK(step.staging.outcome().get(soon()) == Outcome::kFailed);
    CHECK(step.staging.persisted().get(soon()) == DiskOutcome::kNotDue);
    CHECK(bench.step_ended());
  }
  SECTION("the generation is over, and nobody answers") {
    bench.answer = nullptr;
    bench.request(step);
    step.job.reset();
    CHECK(error_of(step.accepted) == ErrorKind::kCancelled);
  }
  // No request is left that an answer could be for.
  bench.in_loop([&] { bench.own.refuse(refusal); });
  CHECK(bench.logs("5 is not above 5"));
  CHECK(bench.nothing_fed());
}

TEST_CASE("own_step: a message that is refused is no answer to the trainer's request") {
  InProcessJob job(2);
  StepBench bench(job.options(0));
  TrainerStep step(5);
  bench.answer = [&](ImageId id) {
    bench.own.refuse({protocol::Refuse::Reason::kMalformed, "an Offer of nobody"});
    bench.own.refuse({protocol::Refuse::Reason::kStale, "a Yes of step 4"});
    bench.own.write({0, id, kNoImage, {}});
  };
  bench.request(step);
  step.accepted.get(soon());
  CHECK(bench.next().as<OwnSealed>().id == kStep);
  CHECK(bench.logs("refused: an Offer of nobody"));
  CHECK(bench.logs("ignored: a Yes of step 4"));
}
