// The part `own_step` alone: its image on the way to a holder, and a generation that ends in
// between.
#include <exception>
#include <future>

#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/transfer/image.hpp>

#include "tests/replicate/own_step_bench.hpp"
#include "tests/replicate/part_images.hpp"
#include "tests/replicate/played_peers.hpp"
#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using protocol::OwnFailed;
using protocol::OwnSealed;
using protocol::Verdict;
using test::error_of;
using test::FaultyRank;
using test::InProcessJob;
using test::kStep;
using test::paced;
using test::PartBench;
using test::PlayedPeers;
using test::soon;
using test::StepBench;
using test::TrainerStep;

constexpr auto kGeneration = PartBench::kGeneration;
constexpr SlotKey kSlot{0, 0};

std::exception_ptr loss() { return std::make_exception_ptr(PeerLost("rank 1 died")); }

}  // namespace

TEST_CASE("own_step: a holder gets the image as it is copied, and the slot is held until then") {
  InProcessJob job(2);
  test::Gate pace;
  StepBench bench(paced(job.options(0), &pace));
  bench.at_end.emplace_back([&] { pace.open(); });
  PlayedPeers peers(job, bench, {1});
  TrainerStep step(5);
  bench.in_loop([&] { bench.slots.hold(kSlot); });
  bench.request(step);
  bench.in_loop([&] {
    bench.own.send({1, {kGeneration, 4}});  // superseded
    bench.own.send({1, kStep});             // the holder was ready before this rank's slot
    bench.slots.release(kSlot);
  });
  const auto start = peers.next<protocol::StreamStart>(1);
  CHECK(start ==
        exchange::stream_start(0, kStep, bench.engine.shape_of(step.job->sizes, true, true)));
  pace.open();
  const auto sealed = bench.next();
  bench.in_loop([&] { CHECK(bench.slots.in_use(kSlot)); });  // it is still being sent
  const auto image = test::image_of_step(0, 2, kStep);
  const Storage memory = Storage::allocate(start.image_bytes);
  const auto info =
      transfer::receive_image(peers.link(1), memory.bytes(), exchange::shape_of(start),
                              image.info.manifest_digest, image.info.identity);
  CHECK(info == image.info);
  CHECK(sealed.as<OwnSealed>().image_digest == info.image_digest);
  bench.wait_for_streams();
  bench.in_loop([&] { CHECK_FALSE(bench.slots.in_use(kSlot)); });
  CHECK(peers.links->nothing_sent());
  CHECK(bench.engine.gate.stats().replica_bytes_sent > 40'000);
}

TEST_CASE("own_step: a step without a slot is sent to nobody, one that is torn to the end") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  test::Gate pace;
  StepBench bench(paced(options, &pace));
  bench.at_end.emplace_back([&] { pace.open(); });
  PlayedPeers peers(job, bench, {1});
  const bool torn = GENERATE(false, true);
  TrainerStep step(5);
  if (!torn) disk.fail(FileOperation::kReserve, 1, ENOSPC);
  bench.request(step);
  if (torn) pace.wait_for_a_piece();
  bench.in_loop([&] { bench.own.send({1, kStep}); });
  if (torn) {
    const auto start = peers.next<protocol::StreamStart>(1);
    step.job->watermark.fail(loss());
    pace.open();
    transfer::drain_image(peers.link(1), exchange::shape_of(start));
  }
  CHECK(bench.next().as<OwnFailed>().id == kStep);
  if (!torn) CHECK(bench.logs("an image to rank 1 was not sent"));
  bench.wait_for_streams();
  bench.in_loop([&] { CHECK_FALSE(bench.slots.in_use(kSlot)); });
  CHECK(peers.links->nothing_sent());
}

TEST_CASE("own_step: a copy that stands still is told, one that goes on is not") {
  InProcessJob job(2);
  test::Gate pace;
  auto options = paced(job.options(0), &pace);
  options.deadline = 50ms;
  StepBench bench(options);
  bench.at_end.emplace_back([&] { pace.open(); });
  TrainerStep step(5);
  const auto check = [&](ImageId id = kStep) {
    bench.in_loop([&] { bench.own.check_copy({id}); });
  };
  check();
  bench.in_loop([&] { bench.slots.hold(kSlot); });
  bench.request(step);
  for (const auto later = Deadline::after(3 * options.deadline); !later.expired();) check();
  CHECK(bench.nothing_fed());  // it has no slot yet, so nothing of it is copied
  bench.in_loop([&] { bench.slots.release(kSlot); });
  pace.wait_for_a_piece();
  const auto until = soon();
  bool told = false;
  while (!told && !until.expired()) {
    check({kGeneration, 4});
    check();
    told = !bench.nothing_fed();
  }
  CHECK(bench.next().as<protocol::CopyStuck>().id == kStep);
  step.job->watermark.advance(step.job->watermark.bytes() + 1);
  check();
  CHECK(bench.nothing_fed());
  pace.open();
  CHECK(bench.next().as<OwnSealed>().id == kStep);
  check();
  CHECK(bench.nothing_fed());
}

TEST_CASE("own_step: where the generation breaks, the outcome is what is known of it by then") {
  InProcessJob job(2);
  test::Gate pace;
  StepBench bench(paced(job.options(0), &pace));
  bench.at_end.emplace_back([&] { pace.open(); });
  const bool known = GENERATE(false, true), copying = GENERATE(false, true);
  CAPTURE(known, copying);
  TrainerStep step(5);
  if (!copying) bench.in_loop([&] { bench.slots.hold(kSlot); });
  bench.request(step);
  if (copying) pace.wait_for_a_piece();
  if (known) bench.announce(Verdict::kFailed);
  bench.in_loop([&] { bench.own.lose(loss()); });
  if (known) {
    CHECK(step.staging.outcome().get(soon()) == Outcome::kFailed);
  } else {
    CHECK(error_of(step.staging.outcome()) == ErrorKind::kPeerLost);
    CHECK(error_of(step.staging.persisted()) == ErrorKind::kPeerLost);
  }
  if (copying) {  // which goes on, so the trainer must wait
    CHECK_FALSE(step.staging.staged().ready());
    bench.leave([&] { pace.open(); });
    step.staging.staged().get(soon());
    CHECK(bench.next().as<OwnSealed>().id == kStep);
  } else {
    CHECK(error_of(step.staging.staged()) == ErrorKind::kPeerLost);
  }
}

TEST_CASE("own_step: a slot that is made ready while the generation is left goes back") {
  InProcessJob job(2);
  StepBench bench(job.options(0));
  std::promise<void> go_on;
  bench.slots.post([&] { go_on.get_future().wait(); });  // what makes room hangs
  TrainerStep step(5);
  bench.request(step);
  bench.leave([&] { go_on.set_value(); });
  CHECK(error_of(step.staging.staged()) == ErrorKind::kCancelled);
  CHECK(error_of(step.staging.outcome()) == ErrorKind::kCancelled);
  CHECK(error_of(step.staging.persisted()) == ErrorKind::kCancelled);
  CHECK(bench.nothing_fed());
  CHECK(bench.engine.vault.slot(kSlot).state == SlotState::kWriting);

  bench.enter(kGeneration + 1);
  bench.engine.gate.recovered();
  bench.engine.gate.leave_step();
  TrainerStep after(6);
  bench.request(after);
  CHECK(bench.next().as<OwnSealed>().id == ImageId{kGeneration, 6});
  after.staging.staged().get(soon());
}
