// The part `inbox` alone: a ward's replica in a round. The test is the protocol, and the ward.
#include <future>
#include <string>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/replicate/ward_bench.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using protocol::ReplicaFailed;
using protocol::ReplicaReady;
using protocol::ReplicaSealed;
using test::FaultyRank;
using test::id_of;
using test::image_of_ward;
using test::InProcessJob;
using test::kWard;
using test::PartBench;
using test::WardBench;

constexpr auto kGeneration = PartBench::kGeneration;
constexpr SlotKey kSlot{kWard, 0};

}  // namespace

TEST_CASE("inbox: a replica is sealed when it is there and its digest is known, in any order") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto image = image_of_ward(5);
  const int when = GENERATE(0, 1, 2, 3);
  CAPTURE(when);
  if (when == 0) bench.expect(image);
  const auto ready = bench.accepted(image);
  CHECK(ready.need_manifest);
  CHECK(ready.held.empty());
  if (when == 1) bench.expect(image);
  const auto start = bench.start_of(image, ready);
  bench.begin_stream(start);
  if (when == 2) bench.expect(image);
  CHECK(bench.send(image, start) == 0);
  if (when == 3) {
    bench.wait_for_streams();
    CHECK(bench.nothing_fed());
    CHECK(bench.engine.vault.slot(kSlot).state == SlotState::kWriting);
    bench.expect(image);
  }
  CHECK(bench.next().as<ReplicaSealed>().id == id_of(image));
  CHECK(test::has_sealed(bench.engine.vault, kSlot, image));
  CHECK(bench.nothing_fed());
}

TEST_CASE("inbox: what a slot holds of an image stays there, but not behind a failure") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto fifth = image_of_ward(5), sixth = image_of_ward(6), seventh = image_of_ward(7);
  CHECK(bench.bring(fifth, 0) == 0);
  CHECK(bench.bring(sixth, 1) == 0);
  std::uint64_t stay = 8 * std::uint64_t{4096};
  SECTION("it is what this rank received there") {}
  SECTION("a step failed that had begun to write there") {
    bench.accepted(image_of_ward(4));
    bench.abort({kGeneration, 4});
    CHECK(bench.why_failed(image_of_ward(4)) == "the step failed");
    stay = 0;
  }
  SECTION("what is known is of another image than the slot has") {
    bench.in_loop([&] {
      auto held = bench.slots.take_held(kSlot);
      held.id = {kGeneration, 3};
      bench.slots.remember_held(kSlot, std::move(held));
    });
    stay = 0;
  }
  CHECK(bench.bring(seventh, 0) == stay);
  CHECK(test::has_sealed(bench.engine.vault, kSlot, seventh));
  CHECK(test::has_sealed(bench.engine.vault, {kWard, 1}, sixth));
}

TEST_CASE("inbox: a replica that is not what was announced is not sealed") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto image = image_of_ward(5);
  const auto ready = bench.accepted(image);
  auto start = bench.start_of(image, ready);
  SECTION("another digest") {
    bench.expect(image, {1, 2});
    bench.begin_stream(start);
    bench.send(image, start);
    CHECK_THAT(bench.why_failed(image), contains_text("not the one announced"));
  }
  SECTION("a damaged block") {
    bench.expect(image);
    bench.begin_stream(start);
    image.bytes()[image.info.manifest_bytes + 5000] ^= std::byte{4};
    bench.send(image, start);
    CHECK_THAT(bench.why_failed(image), contains_text("rank 1"));
  }
  SECTION("other sizes") {
    start.image_bytes += 4096;
    bench.begin_stream(start);
    CHECK_THAT(bench.why_failed(image), contains_text("in other sizes"));
    CHECK(bench.logs("a message was refused: stream start from rank 1"));
  }
  CHECK(bench.logs("rank 1's replica of generation 7, step 5 did not arrive whole"));
  const auto after = image_of_ward(6);
  CHECK(bench.bring(after, 0) == 0);
  CHECK(test::has_sealed(bench.engine.vault, kSlot, after));
}

TEST_CASE("inbox: a replica that is not whole fails when its owner calls its own image whole") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto image = image_of_ward(5);
  const auto start = bench.start_of(image, bench.accepted(image));
  image.bytes()[image.info.manifest_bytes + 5000] ^= std::byte{4};
  const auto arrive = [&] {
    bench.begin_stream(start);
    bench.send(image, start);
    bench.wait_for_streams();
  };
  std::string why = "the step failed";
  SECTION("it does") {
    arrive();
    CHECK(bench.nothing_fed());
    bench.expect(image);
    why = "corrupt data";
  }
  SECTION("its copy failed") {
    arrive();
    CHECK(bench.nothing_fed());
    bench.abort(id_of(image));
  }
  SECTION("its copy failed, and that is heard first") {
    bench.begin_stream(start);
    bench.abort(id_of(image));
    CHECK(bench.nothing_fed());
    bench.send(image, start);
  }
  CHECK_THAT(bench.why_failed(image), contains_text(why));
  CHECK(bench.nothing_fed());
  CHECK(bench.bring(image_of_ward(6), 0) == 0);
}

TEST_CASE("inbox: a stream that nobody asked for is refused, and the next one is taken") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto image = image_of_ward(5);
  bench.begin_stream(bench.start_of(image, {}));
  CHECK(bench.logs("which this rank did not ask for"));
  CHECK(bench.nothing_fed());
  CHECK(bench.bring(image, 0) == 0);
  bench.begin_stream(bench.start_of(image, {}));  // the same once more
  CHECK(bench.nothing_fed());
}

TEST_CASE("inbox: a failed step gives its slot back, wherever its replica is") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto image = image_of_ward(5);
  std::promise<void> go_on;
  const auto held = go_on.get_future().share();
  const auto hold_slots = [&] { bench.slots.post([held] { held.wait(); }); };
  std::string why = "the step failed";
  SECTION("its slot is in use") {
    bench.in_loop([&] { bench.slots.hold(kSlot); });
    bench.accept(image);
    bench.abort(id_of(image));
    CHECK(bench.nothing_fed());
    bench.in_loop([&] { bench.slots.release(kSlot); });
    CHECK(bench.why_failed(image) == why);
    CHECK(bench.engine.vault.slot(kSlot).state == SlotState::kEmpty);  // it was left alone
    why.clear();
  }
  SECTION("its slot is being made ready") {
    hold_slots();
    bench.accept(image);
    bench.abort(id_of(image));
    CHECK(bench.nothing_fed());
    go_on.set_value();
  }
  SECTION("its stream comes later") {
    const auto start = bench.start_of(image, bench.accepted(image));
    bench.abort(id_of(image));
    bench.begin_stream(start);
    bench.send(image, start);  // every piece is taken
  }
  SECTION("its stream has begun") {
    const auto start = bench.start_of(image, bench.accepted(image));
    bench.expect(image);
    bench.begin_stream(start);
    bench.abort(id_of(image));
    CHECK(bench.nothing_fed());
    bench.send(image, start);
  }
  SECTION("its digest is not known yet") {
    const auto start = bench.start_of(image, bench.accepted(image));
    bench.begin_stream(start);
    bench.send(image, start);
    bench.wait_for_streams();
    bench.abort(id_of(image));
  }
  SECTION("it is being sealed") {
    const auto start = bench.start_of(image, bench.accepted(image));
    bench.begin_stream(start);
    bench.send(image, start);
    bench.wait_for_streams();
    hold_slots();
    bench.expect(image);
    bench.abort(id_of(image));
    CHECK(bench.nothing_fed());
    go_on.set_value();
    CHECK(bench.next().as<ReplicaSealed>().id == id_of(image));
    why.clear();
  }
  if (!why.empty()) CHECK(bench.why_failed(image) == why);
  CHECK(bench.nothing_fed());
  bench.bring(image_of_ward(6), 0);
  bench.in_loop([&] { bench.inbox.complete({kGeneration, 6}); });
  CHECK(bench.accepted(image, 1).id == id_of(image));  // its failure is forgotten by now
}

TEST_CASE("inbox: a replica waits for its slot and for the stream before it") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto fifth = image_of_ward(5), sixth = image_of_ward(6);
  const auto start = bench.start_of(fifth, bench.accepted(fifth));
  bench.begin_stream(start);
  bench.abort(id_of(fifth));
  bench.accept(sixth, 1);
  CHECK(bench.nothing_fed());
  bench.send(fifth, start);
  CHECK(bench.why_failed(fifth) == "the step failed");
  CHECK(bench.next().as<ReplicaReady>().id == id_of(sixth));
}

TEST_CASE("inbox: a slot that cannot be had fails the replica at once") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  const bool hangs = GENERATE(false, true);
  if (hangs) options.deadline = 200ms;
  WardBench bench(job, options);
  const auto image = image_of_ward(5);
  if (hangs) {
    bench.in_loop([&] { bench.slots.hold_for_disk({&kSlot, 1}); });
  } else {
    disk.fail(FileOperation::kReserve, 1, ENOSPC);
  }
  bench.accept(image);
  CHECK_THAT(bench.why_failed(image), contains_text(hangs ? "written to disk" : "memory"));
  if (hangs) {
    bench.in_loop([&] { bench.slots.release_from_disk({&kSlot, 1}); });
  } else {
    CHECK(bench.logs("cannot hold rank 1's replica of generation 7, step 5"));
    bench.bring(image_of_ward(6), 0);
  }
}

TEST_CASE("inbox: a vault that another process took seals nothing") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto image = image_of_ward(5);
  const auto start = bench.start_of(image, bench.accepted(image));
  const auto other = job.options(0);
  const Vault newer = Vault::attach({.job = InProcessJob::kName,
                                     .rank = 0,
                                     .directory = other.vault_directory,
                                     .fs = other.file_system});
  bench.expect(image);
  bench.begin_stream(start);
  bench.send(image, start);
  CHECK_THAT(bench.why_failed(image), contains_text("superseded"));
  bench.accept(image_of_ward(6), 1);
  CHECK_THAT(bench.next().called, contains_text("lose_vault: "));
  CHECK_THAT(bench.why_failed(image_of_ward(6)), contains_text("superseded"));
}

TEST_CASE("inbox: what is under way while a generation is left is nobody's in the next one") {
  InProcessJob job(2);
  WardBench bench(job);
  const auto image = image_of_ward(5);
  const auto ready = bench.accepted(image);
  const auto start = bench.start_of(image, ready);
  const bool streaming = GENERATE(false, true);
  if (streaming) bench.begin_stream(start);
  bench.leave();
  CHECK((!streaming || bench.next().as<ReplicaFailed>().id == id_of(image)));
  bench.wait_for_slots();
  CHECK(bench.engine.vault.begin_write(kSlot, image.info.identity, 4096)
            .valid());  // no lease is left
  bench.enter(kGeneration + 1);
  bench.begin_stream(start);
  CHECK(bench.logs("which this rank did not ask for"));
  bench.expect(image);
  CHECK(bench.nothing_fed());
  bench.accept(image);  // the slot is free
  CHECK(bench.next().as<ReplicaReady>().id == id_of(image));
}
