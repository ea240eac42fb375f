// Which rank reads which file where ranks share a directory of images, or some of them do.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/presence.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/replicate/persistence.hpp>

#include "tests/replicate/part_images.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

constexpr int kWorld = 4;

void no_complaints(const std::string& text) { FAIL_CHECK(text); }

/// Image 1 of rank `owner` of `world`.
TestImage image_of(int owner, int world, std::uint64_t step = 1) {
  const ImageIdentity identity{"job", owner, world, {1, step}};
  return make_image(Dict{{"weight", Tensor::arange<float>(100)}}, {.block_bytes = 4096}, identity);
}

/// A disk that ranks of `here` share, with each rank's own image and a replica at rank r + 2.
class SharedDisk {
 public:
  SharedDisk(const std::vector<int>& here, int world) : here_(here) {
    for (int r = 0; r < world; ++r) {
      const TestImage image = image_of(r, world);
      for (const int writer : {r, (r + 2) % world}) {
        leave_file(disk_, writer, image);
      }
    }
    for (const int rank : here_) {
      processes_.push_back(disk_.as_process(10 + rank));
      ranks_[rank] =
          std::make_unique<Persistence>(*processes_.back(), "/disk", "job", rank, kWorld);
    }
  }
  Persistence& rank(int r) { return *ranks_.at(r); }
  void enter(std::uint64_t generation) {
    for (const int r : here_) rank(r).enter(generation);
  }
  void leave() {
    for (const int r : here_) rank(r).leave();
  }
  /// Of each owner, the ranks that claim its image.
  std::map<int, std::vector<int>> claimed() {
    std::map<int, std::vector<int>> claimed;
    for (const int r : here_) {
      for (const auto& claim : rank(r).verify(kNoImage, no_complaints).claims) {
        CHECK(claim.at == r);
        claimed[claim.owner].push_back(r);
      }
    }
    return claimed;
  }
  std::vector<std::string> names() { return disk_.list("/disk"); }
  FileSystem& disk() { return disk_; }

 private:
  MemoryFileSystem disk_;
  std::vector<int> here_;
  std::vector<std::unique_ptr<FileSystem>> processes_;
  std::map<int, std::unique_ptr<Persistence>> ranks_;
};

using Claimed = std::map<int, std::vector<int>>;

}  // namespace

TEST_CASE("ranks that share a directory read their own files and those that they wrote") {
  SharedDisk shared({0, 1, 2, 3}, kWorld);
  shared.enter(2);
  CHECK(shared.claimed() == Claimed{{0, {0, 2}}, {1, {1, 3}}, {2, {0, 2}}, {3, {1, 3}}});
}

TEST_CASE("one rank on a host reads what ranks that sit elsewhere now have left on its disk") {
  SharedDisk shared({0, 1}, kWorld);
  shared.enter(2);
  CHECK(shared.claimed() == Claimed{{0, {0}}, {1, {1}}, {2, {0}}, {3, {1}}});

  SharedDisk one({0}, kWorld);
  one.enter(2);
  CHECK(one.claimed() == Claimed{{0, {0}}, {1, {0}}, {2, {0}}, {3, {0}}});
}

TEST_CASE("a rank that could not say that it shares the directory is read for as well") {
  SharedDisk shared({0, 2, 3}, kWorld);
  shared.rank(0).enter(2);
  shared.rank(3).enter(2);
  shared.rank(2).enter(1);  // as if its call had failed: in this generation it says nothing
  const auto claimed = shared.claimed();
  CHECK(claimed.size() == kWorld);
  CHECK(claimed.at(2) == std::vector<int>{0, 2});
}

TEST_CASE("images of another number of ranks are nobody's but their owners' and writers'") {
  SharedDisk shared({0, 1}, 6);
  shared.enter(2);
  CHECK(shared.claimed() == Claimed{{0, {0}}, {1, {1}}, {4, {0}}, {5, {1}}});
}

TEST_CASE("what a rank says in a directory ends with the recovery, or with its process") {
  SharedDisk shared({0, 1}, kWorld);
  const auto before = shared.names();
  shared.enter(2);
  CHECK(ranks_present(shared.disk(), "/disk", "job", 2) == std::vector<int>{0, 1});
  CHECK(ranks_present(shared.disk(), "/disk", "job", 1).empty());
  CHECK(ranks_present(shared.disk(), "/disk", "jo", 2).empty());
  CHECK(list_images(shared.disk(), "/disk", "job").size() == before.size());
  shared.enter(3);
  CHECK(ranks_present(shared.disk(), "/disk", "job", 2).empty());
  CHECK(ranks_present(shared.disk(), "/disk", "job", 3) == std::vector<int>{0, 1});
  shared.leave();
  CHECK(shared.names() == before);
}

TEST_CASE("a directory without images of the job is not written to") {
  MemoryFileSystem disk;
  Persistence files(disk, "/disk", "job", 0, kWorld);
  files.enter(1);
  CHECK_FALSE(disk.stat("/disk"));
  disk.make_directories("/disk");
  files.enter(1);
  CHECK(disk.list("/disk").empty());
}

TEST_CASE("old files of ranks that sit elsewhere now are removed by one that sits here") {
  SharedDisk shared({0, 1}, kWorld);
  shared.enter(2);
  (void)shared.claimed();
  shared.leave();
  // Each removes what it wrote, and what one of the others did: of ranks 0 and 2, and of 1 and 3.
  CHECK(shared.rank(0).prune_older({1, 2}, 0) == 4);
  CHECK(shared.rank(1).prune_older({1, 2}, 0) == 4);
  CHECK(shared.names().empty());

  SharedDisk all({0, 1, 2, 3}, kWorld);
  all.enter(2);
  (void)all.claimed();
  CHECK(all.rank(0).prune_older({1, 2}, 0) == 2);
}

TEST_CASE("a rank removes what it wrote in a recovery in another rank's name") {
  MemoryFileSystem disk;
  Persistence files(disk, "/disk", "job", 0, 2);
  files.enter(2);
  const TestImage own = image_of(5, 6), other = image_of(3, 6);  // of ranks of an older job
  files.publish_in_recovery(own.info, own.bytes(), 5);
  Persistence(disk, "/disk", "job", 1, 2).publish(other.info, other.bytes(), 3);
  CHECK(files.prune_older({1, 2}, 0) == 1);
  CHECK(list_images(disk, "/disk", "job").size() == 1);
}

TEST_CASE("whether all ranks share the directory is told, as far as it has images") {
  SharedDisk some({0, 1}, kWorld), all({0, 1, 2, 3}, kWorld);
  for (auto* disk : {&some, &all}) {
    disk->enter(2);
    (void)disk->claimed();
    CHECK(disk->rank(0).is_shared_by_all() == (disk == &all));
    disk->leave();
  }
  MemoryFileSystem empty;
  Persistence files(empty, "/disk", "job", 0, kWorld);
  files.enter(1);
  (void)files.verify(kNoImage, no_complaints);
  CHECK_FALSE(files.is_shared_by_all());
}
