// Files of an old job's images, made of what lies in a vault and in stray vaults: without an
// engine.
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/replicate/old_images.hpp>

#include "tests/replicate/part_images.hpp"
#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/watched_file_system.hpp"

namespace {

using namespace meshstage;
using replicate::publish_old_images;
using test::TestImage;

constexpr const char* kJob = "job";
constexpr ImageId kId{3, 85};  // of test::borrowing_image(), rank 2's of 4
constexpr int kOldWorld = 4;

/// An image of the old job; rank 0's and rank 3's have what rank 2 borrows.
TestImage image_of(int rank, ImageId id = kId, int world_size = kOldWorld) {
  const Dict shared = test::borrowing_state();
  Dict state{{"more", test::bytes_tensor(700 * (rank + 1), 9)}};
  if (rank == 0) state.set("both", shared.at("both"));
  if (rank == 3) {
    state.set("last", shared.at("last"));
    state.set("small", shared.at("small"));
  }
  return test::make_image(Value(state), {.block_bytes = 4096}, {kJob, rank, world_size, id});
}

/// Rank 0 of a job of two ranks, with a vault and a directory.
struct OldJob {
  MemoryFileSystem disk;
  FaultyFileSystem faulty{disk};
  Vault vault = Vault::attach({.job = kJob, .rank = 0, .directory = "/vault", .fs = &faulty});
  Persistence files{faulty, "/disk", kJob, 0, 2};
  std::vector<StraySlot> strays;
  std::set<int> said_written;  ///< by the last publish()

  /// What failed. What is said to be written are sound files.
  std::string publish(bool replicas) {
    const auto published = publish_old_images(vault, strays, files, {{kId, kOldWorld}, replicas});
    for (const int rank : published.written) CHECK(files.sound_file(kId, rank, kOldWorld));
    said_written = {published.written.begin(), published.written.end()};
    return published.failed;
  }
  void seal(SlotKey key, const TestImage& image) { test::seal_in(vault, key, image); }
  void add_stray(int of, SlotKey key, const TestImage& image) {
    strays.push_back({of, key, image.info, image.bytes(), std::make_shared<TestImage>(image)});
  }
  /// By owner: the writer of its file.
  std::map<int, int> written() {
    std::map<int, int> found;
    for (const auto& file : list_images(disk, "/disk", kJob)) {
      CHECK(file.name.id == kId);
      CHECK(file.name.world_size == kOldWorld);
      found[file.name.rank] = file.name.writer();
    }
    return found;
  }
  bool has_file(const TestImage& image) {
    const auto& who = image.info.identity;
    const auto file = files.sound_file(who.id, who.rank, who.world_size);
    return file && test::same_bytes(file->bytes(), image.bytes());
  }
};
using Written = std::map<int, int>;

}  // namespace

TEST_CASE("old_images: own images of that step become files as their ranks would have named them") {
  OldJob job;
  const auto own = image_of(0), stray = image_of(3), replica = image_of(1);
  job.seal({0, 0}, own);
  job.seal({0, 1}, image_of(0, {3, 84}));  // another step
  job.seal({1, 0}, replica);
  job.add_stray(3, {3, 0}, stray);
  job.add_stray(3, {1, 1}, replica);
  job.add_stray(1, {1, 0}, image_of(1, kId, 2));  // of the same step of another job
  CHECK(job.publish(false).empty());
  CHECK(job.written() == Written{{0, 0}, {3, 3}});
  CHECK(job.said_written == std::set<int>{0, 3});
  CHECK(job.has_file(own));
  CHECK(job.has_file(stray));
}

TEST_CASE("old_images: an image becomes no file where there is no room, and the reason is told") {
  OldJob job;
  const auto own = image_of(0), stray = image_of(3);
  REQUIRE(stray.info.image_bytes < own.info.image_bytes);
  job.seal({0, 0}, own);
  job.add_stray(3, {3, 0}, stray);
  test::WatchedFileSystem disk(job.disk);
  job.disk.make_directories("/disk");
  disk.room = own.info.image_bytes - 1;
  const Persistence files(disk, "/disk", kJob, 0, 2);
  const auto publish = [&] {
    return publish_old_images(job.vault, job.strays, files, {{kId, kOldWorld}, false});
  };
  CHECK_THAT(publish().failed, Catch::Matchers::Contains("the image of rank 0, ") &&
                                   Catch::Matchers::Contains("is not written to /disk") &&
                                   Catch::Matchers::Contains("there is room for"));
  CHECK(job.written() == Written{{3, 3}});
  disk.room = 0;
  SECTION("there is as much as it takes") { disk.room = own.info.image_bytes; }
  SECTION("it is a file already") { job.files.publish(own.info, own.bytes(), 0); }
  CHECK(publish().failed.empty());
  CHECK(job.written() == Written{{0, 0}, {3, 3}});
}

TEST_CASE("old_images: a replica becomes a file where its owner has none") {
  OldJob job;
  const auto first = image_of(1);
  job.seal({1, 0}, first);
  job.add_stray(1, {3, 0}, image_of(3));
  const Persistence old_rank(job.disk, "/disk", kJob, 3, kOldWorld);
  old_rank.publish(image_of(3).info, image_of(3).bytes());
  CHECK(job.publish(true).empty());
  CHECK(job.written() == Written{{1, 0}, {3, 3}});
  CHECK(job.said_written == std::set<int>{1, 3});
  CHECK(job.has_file(first));
}

TEST_CASE("old_images: a replica that borrows is made whole, or said with what it lacks") {
  OldJob job;
  const auto image = test::borrowing_image();
  test::seal_in(job.vault, {2, 0}, image.info, test::replica_of(image).bytes());
  job.add_stray(3, {1, 0}, image_of(1));
  job.seal({0, 0}, image_of(0));
  const bool lender = GENERATE(false, true);
  if (lender) job.add_stray(3, {3, 0}, image_of(3));
  CHECK(job.publish(false).empty());
  const auto failed = job.publish(true);
  if (lender) {
    CHECK(failed.empty());
    CHECK(job.has_file(image));
    CHECK(job.written() == Written{{0, 0}, {1, 3}, {2, 0}, {3, 3}});
  } else {
    CHECK_THAT(failed, contains_text("the image of rank 2"));
    CHECK_THAT(failed, contains_text("it borrows from rank 3"));
    CHECK(job.written() == Written{{0, 0}, {1, 3}});  // what needs no lender is there
  }
}

TEST_CASE(
    "old_images: an image that has rotted, or a disk that is full, keeps no other from disk") {
  OldJob job;
  const auto own = image_of(0), first = image_of(1), second = image_of(2);
  const bool rotten = GENERATE(false, true);
  if (rotten) own.bytes()[own.info.manifest_bytes + 5] ^= std::byte{1};
  job.seal({0, 0}, own);
  job.add_stray(1, {1, 0}, first);
  job.add_stray(2, {2, 0}, second);
  if (!rotten) job.faulty.fail(FileOperation::kWriteAt, 1, ENOSPC);
  second.bytes()[second.info.manifest_bytes] ^= std::byte{1};
  const auto failed = job.publish(false);
  CHECK_THAT(failed, contains_text("the image of rank 0"));
  CHECK_THAT(failed, contains_text("from the vault of rank 0, is not written to /disk: "));
  CHECK_THAT(failed, contains_text("; the image of rank 2"));
  CHECK(job.written() == Written{{1, 1}});
  CHECK(job.said_written == std::set<int>{1});
  // Once more, when there is room.
  const auto again = job.publish(false);
  CHECK((again.find("rank 0") == std::string::npos) == !rotten);
}

TEST_CASE("old_images: a slot that is being written is no image") {
  OldJob job;
  const auto own = image_of(0);
  job.seal({0, 0}, own);
  const WriteLease lease = job.vault.begin_write({0, 0}, own.info.identity, own.info.image_bytes);
  CHECK(job.publish(false).empty());
  CHECK(job.written().empty());
}
