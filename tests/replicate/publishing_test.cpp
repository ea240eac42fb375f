// What reaches the disk is what was proven, whatever happens to the slot meanwhile.
#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/replicate/persistence.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/disk_contents.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

// Four blocks of 4 KiB behind a manifest: six pieces with the trailer.
TestImage small_image() {
  return make_image(Dict{{"weight", Tensor::arange<float>(4000)}, {"lr", 0.5}});
}

std::vector<std::byte> copy_of(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}

// A slot whose byte `at` rots while the `nth` call of `operation` hangs. Returns what publish()
// threw, or "".
std::string publish_rotting(MemoryFileSystem& disk, const TestImage& image, std::uint64_t at,
                            FileOperation operation, int nth) {
  FaultyFileSystem held(disk);
  const Persistence files(held, "/disk", "job", 2, image.info.identity.world_size);
  std::string error;
  held.shorten_writes(4096);
  held.block(operation);
  std::thread publisher([&] {
    try {
      files.publish(image.info, image.bytes());
    } catch (const CorruptData& e) {
      error = e.what();
    }
  });
  for (int call = 1; call < nth; ++call) {
    held.wait_until_blocked();
    held.block(operation);
  }
  held.wait_until_blocked();
  image.bytes()[at] ^= std::byte{0x20};
  held.unblock();
  publisher.join();
  return error;
}

}  // namespace

TEST_CASE("a byte that rots while an image is being written never reaches the disk") {
  const TestImage sound = small_image();
  const auto whole = copy_of(sound.bytes());
  const ImageInfo& info = sound.info;
  const std::vector<std::uint64_t> places{10,  // in the manifest, in each block, in the trailer
                                          info.manifest_bytes + 5,
                                          info.manifest_bytes + info.block_bytes + 5,
                                          info.manifest_bytes + 3 * info.block_bytes + 5,
                                          info.image_bytes - 1,
                                          info.image_bytes - 40};
  int refused = 0;
  for (const std::uint64_t at : places) {
    for (int write = 0; write <= 5; ++write) {
      INFO("byte " << at << ", while write " << write << " hangs (0: before the file is open)");
      MemoryFileSystem disk;
      const TestImage image = small_image();
      const auto error = write == 0
                             ? publish_rotting(disk, image, at, FileOperation::kOpen, 1)
                             : publish_rotting(disk, image, at, FileOperation::kWriteAt, write);
      const auto contents = read_all(disk, "/disk");
      if (error.empty()) {
        REQUIRE(contents.size() == 1);
        CHECK(contents.begin()->second == whole);
        continue;
      }
      ++refused;
      CHECK(contents.empty());         // neither the image nor a temporary file
      if (at + 40 < info.image_bytes)  // a damaged trailer does not say whose it is
        CHECK(error.find("rank 2") != std::string::npos);
    }
  }
  // Before the file is open nothing was proven; after that, all that comes behind the write that
  // hangs was not: blocks 0, 1 and 3 are the second, third and fifth piece.
  CHECK(refused == static_cast<int>(places.size()) + 1 + 2 + 4);
}

TEST_CASE("what a slot says of its image must be what the image says") {
  MemoryFileSystem disk;
  const TestImage image = small_image();
  ImageInfo other = image.info;
  other.identity.id.step += 5;
  const Persistence files(disk, "/disk", "job", 2, image.info.identity.world_size);
  CHECK_THROWS_WITH(files.publish(other, image.bytes()), contains_text("but was to be of"));
  CHECK(read_all(disk, "/disk").empty());
}

TEST_CASE("an image that is on disk already is believed only when it proves to be the same") {
  MemoryFileSystem disk;
  FaultyFileSystem counted(disk);
  const TestImage image = small_image();
  const Persistence files(counted, "/disk", "job", 2, image.info.identity.world_size);
  files.publish(image.info, image.bytes());
  const auto published = read_all(disk, "/disk");
  REQUIRE(published.size() == 1);
  const auto& [path, whole] = *published.begin();

  const auto syncs = counted.calls(FileOperation::kSyncDirectory);
  const auto writes = counted.calls(FileOperation::kWriteAt);
  files.publish(image.info, image.bytes());
  CHECK(counted.calls(FileOperation::kWriteAt) == writes);
  // Whoever wrote it may have failed before the name was durable.
  CHECK(counted.calls(FileOperation::kSyncDirectory) == syncs + 1);

  for (const std::uint64_t at :
       {std::uint64_t{10}, image.info.manifest_bytes + 5, image.info.image_bytes - 1}) {
    flip(disk, path, at);
    files.publish(image.info, image.bytes());
    CHECK(read_all(disk, "/disk") == published);
  }
  disk.open(path, OpenMode::kReadWrite)->truncate(100);
  files.publish(image.info, image.bytes());
  CHECK(read_all(disk, "/disk") == published);
}
