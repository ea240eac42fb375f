// The part `restorer` alone: a recovery's actions at rank 0 of 2. The test is the protocol, and
// rank 1.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/transfer/image.hpp>

#include "tests/replicate/part_images.hpp"
#include "tests/replicate/played_peers.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using protocol::Fetched;
using protocol::FetchFailed;
using protocol::FilesVerified;
using protocol::SlotsVerified;
using replicate::RecoverCommand;
using test::FaultyRank;
using test::InProcessJob;
using test::PartBench;
using test::PlayedPeers;
using test::soon;
using test::TestImage;

constexpr ImageId kId{PartBench::kGeneration - 1, 4};

/// Rank 0 of 2 in a recovery.
class RecoveryBench : public PartBench {
 public:
  explicit RecoveryBench(const CheckpointerOptions& options) : PartBench(options) {
    in_loop([this] { engine.state.mode = protocol::Mode::kRecovering; });
  }
  RecoverCommand command() {
    return engine.gate.next_command({20s, [](std::uint32_t) {}});
  }
  FilesVerified verify_disk() {
    in_loop([this] { restorer.verify_disk({kNoImage, false}); });
    return next().as<FilesVerified>();
  }
};

protocol::Claim claim_to(const TestImage& image, int at, protocol::Place place) {
  return protocol::claim_of(image.info, {}, at, place, 0);
}

}  // namespace

TEST_CASE("restorer: slots are verified with what the Store says of the job") {
  InProcessJob job(2);
  RecoveryBench bench(job.options(0));
  const auto image = test::image_of_step(0, 2, kId);
  test::seal_in(bench.engine.vault, {0, 0}, image);
  const auto verify = [&] { bench.in_loop([&] { bench.restorer.verify_slots(); }); };
  SECTION("its note is evidence") {
    replicate::note_complete(*job.store(), InProcessJob::kName, kId, soon());
    verify();
    const auto fed = bench.next();
    CHECK(fed.as<SlotsVerified>().evidence == kId);
    REQUIRE(fed.as<SlotsVerified>().claims.size() == 1);
    CHECK(fed.as<SlotsVerified>().claims[0] == claim_to(image, 0, protocol::Place::kOwnSlot));
  }
  SECTION("without it the generation ends") {
    bench.store->fail();
    verify();
    CHECK_THAT(bench.next().called, contains_text("lose_store: cannot read the Store"));
  }
  SECTION("an answer that comes in the next generation is dropped") {
    bench.store->hang();
    verify();
    bench.in_loop([&] { ++bench.engine.present; });
    bench.store->go_on();
    CHECK(bench.nothing_fed());
    CHECK(bench.verify_disk().claims.empty());  // behind what would be verified now
    verify();
    CHECK(bench.next().as<SlotsVerified>().claims.size() == 1);
  }
}

TEST_CASE("restorer: an own file is fetched and restored, once it was verified") {
  InProcessJob job(2);
  RecoveryBench bench(job.options(0));
  const auto image = test::image_of_step(0, 2, kId);
  bench.files.publish(image.info, image.bytes());
  const auto fetch = [&] {
    bench.in_loop(
        [&] { bench.restorer.fetch({claim_to(image, 0, protocol::Place::kOwnFile), 0}); });
    return bench.next();
  };
  CHECK(fetch().as<FetchFailed>().kind == ErrorKind::kNotFound);
  const auto found = bench.verify_disk();
  REQUIRE(found.claims.size() == 1);
  CHECK(found.claims[0] == claim_to(image, 0, protocol::Place::kOwnFile));
  CHECK(found.evidence == kId);
  CHECK(fetch().as<Fetched>().owner == 0);
  CHECK(test::has_sealed(bench.engine.vault, {0, 0}, image));

  bench.in_loop([&] { bench.restorer.restore({0, kId}); });
  const auto command = bench.command();
  CHECK(command.kind == RecoverCommand::Kind::kRestore);
  CHECK(command.slot == 0);
  CHECK(command.id == kId);
  CHECK(command.source == Source::kDisk);
  CHECK(command.from_rank == 0);
  // The recovery is over, and what it found forgotten.
  CHECK(fetch().as<FetchFailed>().kind == ErrorKind::kNotFound);
}

TEST_CASE("restorer: a part of what was verified is claimed again, and nothing is read for it") {
  InProcessJob job(2);
  RecoveryBench bench(job.options(0));
  const auto id = [](std::uint64_t step) { return ImageId{kId.generation, step}; };
  test::seal_in(bench.engine.vault, {0, 0}, test::image_of_step(0, 2, id(2)));
  test::seal_in(bench.engine.vault, {0, 1}, test::image_of_step(0, 2, id(5)));
  for (const std::uint64_t step : {1, 3, 4}) {
    const auto image = test::image_of_step(0, 2, id(step));
    bench.files.publish(image.info, image.bytes());
  }
  bench.in_loop([&] { bench.restorer.verify_slots(); });
  REQUIRE(bench.next().as<SlotsVerified>().claims.size() == 2);
  REQUIRE(bench.verify_disk().claims.size() == 3);
  for (const auto& name : job.disk().list("/disk")) job.disk().unlink("/disk/" + name);
  const auto again = [&](ImageId newer_than, ImageId up_to) {
    bench.in_loop([&] { bench.restorer.verify_disk({newer_than, true, up_to}); });
    std::vector<std::pair<std::uint64_t, protocol::Place>> found;
    const auto fed = bench.next();
    for (const auto& claim : fed.as<FilesVerified>().claims) {
      found.emplace_back(claim.id.step, claim.place);
    }
    std::sort(found.begin(), found.end());
    return found;
  };
  using Found = std::vector<std::pair<std::uint64_t, protocol::Place>>;
  constexpr auto kFile = protocol::Place::kOwnFile, kSlot = protocol::Place::kOwnSlot;
  CHECK(again(kNoImage, id(4)) == Found{{1, kFile}, {2, kSlot}, {3, kFile}, {4, kFile}});
  CHECK(again(kNoImage, id(2)) == Found{{1, kFile}, {2, kSlot}});
  CHECK(again(id(2), id(4)) == Found{{3, kFile}, {4, kFile}});
  bench.in_loop([&] { bench.restorer.restore({0, kId}); });  // then all is forgotten
  CHECK(again(kNoImage, id(4)).empty());
}

TEST_CASE("restorer: the trainer hears where its image was, and what else is decided") {
  InProcessJob job(2);
  RecoveryBench bench(job.options(0));
  PlayedPeers peers(job, bench, {1});
  const auto image = test::image_of_step(0, 2, kId);
  SECTION("a holder's memory") {
    bench.in_loop(
        [&] { bench.restorer.fetch({claim_to(image, 1, protocol::Place::kHeldSlot), 1}); });
    const auto start = exchange::stream_start(
        0, kId, bench.engine.shape_of(test::sizes_of(image.info), true, false));
    bench.in_loop([&] { bench.inbox.stream(1, start); });
    transfer::send_image(peers.link(1), image.bytes(), exchange::shape_of(start),
                         [](std::uint64_t) {});
    CHECK(bench.next().as<Fetched>().owner == 0);
    bench.in_loop([&] { bench.restorer.restore({1, kId}); });
    const auto command = bench.command();
    CHECK(command.source == Source::kHolderMemory);
    CHECK(command.from_rank == 1);
  }
  SECTION("its own memory") {
    bench.in_loop([&] {
      bench.restorer.fetch({claim_to(image, 1, protocol::Place::kHeldSlot), 1});
      bench.restorer.verify_slots();  // what an older recovery fetched does not count
      bench.restorer.restore({1, kId});
    });
    CHECK(bench.command().source == Source::kOwnMemory);
  }
  SECTION("the structure is to be compared") {
    bench.in_loop([&] { bench.restorer.check_structure({1}); });
    const auto command = bench.command();
    CHECK(command.kind == RecoverCommand::Kind::kCheck);
    CHECK(command.slot == 1);
  }
  SECTION("there is nothing, or only what other ranks left") {
    bench.in_loop([&] { bench.restorer.nothing({kId, 4}); });
    const auto command = bench.command();
    CHECK(command.kind == RecoverCommand::Kind::kNothing);
    CHECK(command.old == protocol::OldStep{kId, 4});
  }
  SECTION("what is newer and is left behind is said") {
    bench.in_loop([&] { bench.restorer.left_behind({{kId, 4}, kNoImage, "no room"}); });
    CHECK(bench.logs("of 4 ranks is newer than what is gone on from, none: no room"));
  }
  SECTION("it failed: every call throws so") {
    bench.in_loop([&] {
      protocol::RecoverFailed failed;
      failed.failure.kind = ErrorKind::kNotFound;
      failed.failure.why = "no copy of rank 1's image";
      bench.restorer.failed(failed);
    });
    CHECK(bench.engine.gate.loss()->kind == ErrorKind::kNotFound);
    CHECK_THAT(bench.engine.gate.loss()->why, contains_text("no copy"));
  }
}

TEST_CASE("restorer: another rank gets an image that this rank has, or hears that it has none") {
  InProcessJob job(2);
  RecoveryBench bench(job.options(0));
  PlayedPeers peers(job, bench, {1});
  const auto image = test::image_of_step(1, 2, kId);
  const bool file = GENERATE(false, true);
  CAPTURE(file);
  const auto claim =
      claim_to(image, 0, file ? protocol::Place::kHeldFile : protocol::Place::kHeldSlot);
  const auto serve = [&] { bench.in_loop([&] { bench.restorer.serve({claim, 1}); }); };
  serve();
  const auto refused = bench.next();
  CHECK(refused.as<FetchFailed>().owner == 1);
  CHECK(refused.as<FetchFailed>().kind == (file ? ErrorKind::kNotFound : ErrorKind::kInvalidState));
  if (file) {
    bench.files.publish(image.info, image.bytes());
    CHECK(bench.verify_disk().claims.size() == 1);
  } else {
    test::seal_in(bench.engine.vault, {1, 0}, image);
  }
  serve();
  const auto start = peers.next<protocol::StreamStart>(1);
  CHECK(start.owner == 1);
  CHECK(start.with_manifest);
  const Storage memory = Storage::allocate(start.image_bytes);
  const auto info =
      transfer::receive_image(peers.link(1), memory.bytes(), exchange::shape_of(start),
                              image.info.manifest_digest, image.info.identity);
  CHECK(info == image.info);
  bench.wait_for_streams();
  CHECK(bench.nothing_fed());
  // The slot is read no more, so it may be written.
  CHECK(bench.engine.vault.begin_write({1, 0}, image.info.identity, 4096).valid());
}

TEST_CASE("restorer: a disk that hangs is told with its file, and told no more when it goes on") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  options.deadline = 100ms;
  RecoveryBench bench(options);
  bench.at_end.emplace_back([&] { disk.unblock(); });
  const auto image = test::image_of_step(0, 2, kId);
  bench.files.publish(image.info, image.bytes());
  disk.block(FileOperation::kMap);
  bench.in_loop([&] { bench.restorer.verify_disk({kNoImage, false}); });
  const auto stuck = bench.next();
  CHECK_THAT(stuck.as<protocol::ReadStuck>().why, contains_text("has read nothing of /disk/"));
  CHECK_THAT(stuck.as<protocol::ReadStuck>().why, contains_text(".own.safetensors for 100 ms"));
  disk.unblock();
  auto fed = bench.next();
  while (std::holds_alternative<protocol::ReadStuck>(fed.event)) fed = bench.next();
  CHECK(fed.as<FilesVerified>().claims.size() == 1);
  CHECK_FALSE(bench.engine.reads.slowest());

  disk.block(FileOperation::kMap);  // the next one is watched, too
  bench.in_loop([&] { bench.restorer.verify_disk({kNoImage, false}); });
  CHECK_THAT(bench.next().as<protocol::ReadStuck>().why, contains_text("has read nothing of"));
}

TEST_CASE("restorer: an old job's images become files, and what fails is said") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  RecoveryBench bench(options);
  const auto old = test::image_of_step(0, 1, kId);
  test::seal_in(bench.engine.vault, {0, 0}, old);
  const protocol::OldStep step{kId, 1};
  const bool fails = GENERATE(false, true);
  if (fails) disk.fail(FileOperation::kWriteAt, 1, EIO);
  bench.in_loop([&] { bench.restorer.publish_old({step, false}); });
  const auto published = bench.next().as<protocol::OldPublished>();
  CHECK(published.failed.empty() != fails);
  CHECK(published.written == (fails ? std::vector<int>{} : std::vector<int>{0}));
  if (fails) CHECK(bench.logs("the image of rank 0"));
  const bool prove = GENERATE(false, true);
  bench.in_loop([&] { bench.restorer.find_old({prove}); });
  const auto found = bench.next().as<protocol::OldFound>();
  CHECK(found.named.size() == (fails ? 0 : 1));
  CHECK(found.proven == (fails || !prove ? protocol::OldStep{} : step));
}
