// The part `verifier` alone: images in slots, files and stray vaults, read and proven.
#include <string>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/replicate/verifier_calls.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/disk_contents.hpp"

namespace {

using namespace meshstage;
using namespace test::verifier;
using replicate::Verifier;
using test::FaultyRank;
using test::InProcessJob;
using test::PartBench;

constexpr auto kGeneration = PartBench::kGeneration;
constexpr ImageId kFourth{kGeneration, 4}, kFifth{kGeneration, 5};

}  // namespace

TEST_CASE("verifier: a slot is claimed if each byte of it is right, and else said") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  const auto own = test::image_of_step(0, 2, kFourth, {kGeneration, 3});
  const auto held = test::image_of_step(1, 2, kFourth, {kGeneration, 3});
  const auto rotten = test::image_of_step(0, 2, kFifth, kFourth);
  rotten.bytes()[rotten.info.manifest_bytes + 9000] ^= std::byte{1};
  test::seal_in(bench.engine.vault, {0, 0}, own);
  test::seal_in(bench.engine.vault, {1, 0}, held);
  test::seal_in(bench.engine.vault, {0, 1}, rotten);
  auto said = test::image_of_step(1, 2, kFifth);  // whose header says another image
  said.info.image_digest = {1, 2};
  test::seal_in(bench.engine.vault, {1, 1}, said);
  const auto found = slots(bench, {{kGeneration, 2}, 0});
  REQUIRE(found.claims.size() == 2);
  CHECK(found.claims[0] == claim_to(own));
  CHECK(found.claims[1] == claim_to(held, protocol::Place::kHeldSlot));
  CHECK(found.evidence == kFourth);  // the rotten one's base was complete
  CHECK_THAT(found.damage, contains_text("rank 0's own image in slot 1"));
  CHECK_THAT(found.damage, contains_text("in slot 1: corrupt data: header and image disagree"));
  CHECK(bench.logs("not used: rank 0's own image in slot 1"));

  const auto over = slots(bench, {kNoImage, kGeneration});
  CHECK(over.claims.empty());
  CHECK(over.damage.empty());
  CHECK_FALSE(over.evidence.exists());
  CHECK(bench.logs("the job finished since"));
}

TEST_CASE("verifier: a vault that another process took ends the generation") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  const auto other = job.options(0);
  const Vault newer = Vault::attach({.job = InProcessJob::kName,
                                     .rank = 0,
                                     .directory = other.vault_directory,
                                     .fs = other.file_system});
  bench.in_loop([&] {
    bench.verifier.slots({}, [](const protocol::SlotsVerified&) { FAIL("it was verified"); });
  });
  CHECK_THAT(bench.next().called, contains_text("lose: -1 rank 0 cannot read its vault"));
}

TEST_CASE("verifier: files and stray vaults are claimed, damaged ones said") {
  InProcessJob job(2);
  auto [options, faulty] = FaultyRank(job.options(0));
  const auto stray = test::image_of_step(1, 2, {kGeneration - 1, 5}, {kGeneration - 1, 4});
  {
    const auto former = job.options(1);
    Vault vault = Vault::attach({.job = InProcessJob::kName,
                                 .rank = 1,
                                 .directory = former.vault_directory,
                                 .fs = former.file_system});
    vault.note_generation(kGeneration - 1);
    test::seal_in(vault, {1, 0}, stray);
  }
  PartBench bench(options);
  bench.engine.vault.note_generation(kGeneration);
  const auto own = test::image_of_step(0, 2, kFourth);
  const auto held = test::image_of_step(1, 2, kFourth);
  for (const auto& image : {own, held, test::image_of_step(0, 2, kFifth)}) {
    bench.files.publish(image.info, image.bytes());
  }
  test::flip(job.disk(), "/disk/" + job.disk().list("/disk").back(), 9000);
  (void)slots(bench);
  if (GENERATE(false, true)) {
    // The stray vault has nothing as new, or another copy of what the slots cover.
    const std::uint64_t covered = GENERATE(6, 5);
    CHECK(disk(bench, {kGeneration - 1, covered}).claims.size() == (covered == 6 ? 2 : 3));
    return;
  }
  const auto found = disk(bench);
  REQUIRE(found.claims.size() == 3);
  CHECK(found.claims[0] == claim_to(own, protocol::Place::kOwnFile));
  CHECK(found.claims[1] == claim_to(held, protocol::Place::kHeldFile));
  CHECK(found.claims[2].place == protocol::Place::kStray);
  CHECK(found.claims[2].vault == 1);
  CHECK(found.claims[2].image_digest == stray.info.image_digest);
  CHECK(found.evidence == kFifth);  // by its name, although damaged
  CHECK_THAT(found.damage, contains_text("ignoring /disk/"));
  REQUIRE(found.places.size() == 3);

  const Storage target = Storage::allocate(stray.info.image_bytes);
  CHECK(load(bench, found.places[0], target, own.info).result == own.info);
  CHECK(test::same_bytes(target.bytes(), own.bytes()));
  CHECK(load(bench, found.places[2], target, stray.info).result == stray.info);
  CHECK(test::same_bytes(target.bytes(), stray.bytes()));

  CHECK(disk(bench, kFifth).claims.empty());
  faulty.fail(FileOperation::kList, 1, EIO);
  CHECK(disk(bench).claims.empty());  // the stray vault was taken already
  CHECK(bench.logs("the directory of images cannot be read"));
}

TEST_CASE("verifier: what is read may have changed since it was found") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  const auto image = test::image_of_step(0, 2, kFourth);
  bench.files.publish(image.info, image.bytes());
  const std::string path = "/disk/" + job.disk().list("/disk").front();
  const Storage target = Storage::allocate(image.info.image_bytes);
  const Verifier::Here here{path, nullptr};
  auto claim = claim_to(image, protocol::Place::kOwnFile);
  CHECK(test::same_bytes(open(bench, claim, here).result->bytes, image.bytes()));
  SECTION("a byte") {
    test::flip(job.disk(), path, image.info.manifest_bytes + 5);
    CHECK(load(bench, here, target, image.info).kind == ErrorKind::kCorruptData);
  }
  SECTION("its size") {
    job.disk().open(path, OpenMode::kReadWrite)->truncate(image.info.image_bytes - 4096);
    CHECK(load(bench, here, target, image.info).kind == ErrorKind::kCorruptData);
    CHECK(open(bench, claim, here).kind == ErrorKind::kCorruptData);
  }
  SECTION("it is gone") {
    job.disk().unlink(path);
    CHECK(load(bench, here, target, image.info).kind == ErrorKind::kNotFound);
    CHECK(open(bench, claim, here).kind == ErrorKind::kNotFound);
  }
  CHECK(bench.nothing_fed());
}

TEST_CASE("verifier: an open image keeps its slot, and nothing opens a slot without one") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  Vault& vault = bench.engine.vault;
  const auto image = test::image_of_step(0, 2, kFourth);
  test::seal_in(vault, {0, 0}, image);
  {
    const auto opened = open(bench, claim_to(image));
    CHECK(test::same_bytes(opened.result->bytes, image.bytes()));
    CHECK_THROWS_AS(vault.begin_write({0, 0}, image.info.identity, 4096), InvalidState);
  }
  auto smaller = claim_to(image);
  smaller.sizes.image_bytes -= 4096;
  CHECK(open(bench, smaller).kind == ErrorKind::kCorruptData);
  bench.in_loop([] {});  // behind the answers, which had leases
  const WriteLease lease = vault.begin_write({0, 0}, image.info.identity, 4096);
  CHECK(open(bench, claim_to(image)).kind == ErrorKind::kInvalidState);
}
