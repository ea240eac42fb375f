// What a recovery reads: who finds that nothing of it comes, and which files are opened.
#include <future>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/replicate/reads.hpp>
#include <meshstage/core/reshard/step_on_disk.hpp>

#include "tests/replicate/part_images.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using namespace meshstage::test;
using replicate::FilesRead;
using replicate::Reads;

namespace {

constexpr int kWorld = 4;

TestImage image_of(int owner, std::uint64_t step) {
  return make_image(Dict{{"weight", Tensor::arange<float>(4000)}}, {.block_bytes = 4096},
                    {"job", owner, kWorld, {1, step}});
}

/// A disk that all ranks share, with each rank's own image of two steps and a replica at rank r +
/// 2.
struct SharedDisk {
  SharedDisk() {
    for (int r = 0; r < kWorld; ++r) {
      for (const std::uint64_t step : {1U, 2U}) {
        const TestImage image = image_of(r, step);
        for (const int writer : {r, (r + 2) % kWorld}) {
          leave_file(memory, writer, image);
        }
      }
    }
  }
  [[nodiscard]] std::uint64_t opened() const { return disk.calls(FileOperation::kOpen); }
  MemoryFileSystem memory;
  FaultyFileSystem disk{memory};
};

}  // namespace

TEST_CASE("the reading of which nothing has come for longest is found, and how far it came") {
  Reads reads;
  CHECK_FALSE(reads.slowest());
  Reads::Reading first(&reads, "/a");
  std::optional<Reads::Reading> second(std::in_place, &reads, "/b", "written");
  second->step(10, 40);
  CHECK(reads.slowest()->path == "/a");
  CHECK(how_far(*reads.slowest()) == "0 bytes");
  first.step();
  CHECK(reads.slowest()->path == "/b");
  CHECK(std::string(reads.slowest()->verb) == "written");
  CHECK(how_far(*reads.slowest()) == "10 of 40 bytes");
  second->step(5);
  second.reset();
  CHECK(reads.slowest()->path == "/a");
  Reads::Reading unseen(nullptr, "/c");
  unseen.step(1, 2);
  CHECK(reads.slowest()->path == "/a");
}

TEST_CASE("who watches what is read is called when a reading begins, and not while it watches") {
  Reads reads;
  int calls = 0;
  reads.when_begun([&] { ++calls; });
  {
    const Reads::Reading one(&reads, "/a");
    const Reads::Reading two(&reads, "/b");
    CHECK(calls == 1);
    CHECK(reads.still_watched());
  }
  const std::optional<Reads::Reading> again(std::in_place, &reads, "/a");
  CHECK(calls == 1);  // it has not looked meanwhile
  CHECK(reads.still_watched());
}

TEST_CASE("a watcher that found nothing to watch is called again") {
  Reads reads;
  int calls = 0;
  reads.when_begun([&] { ++calls; });
  (void)Reads::Reading(&reads, "/a");
  CHECK_FALSE(reads.still_watched());
  (void)Reads::Reading(&reads, "/a");
  CHECK(calls == 2);
}

TEST_CASE("a reading that cannot be watched, for want of memory, is none") {
  Reads reads;
  reads.when_begun([] { throw std::bad_alloc(); });
  CHECK_THROWS_AS(Reads::Reading(&reads, "/a"), std::bad_alloc);
  CHECK_FALSE(reads.slowest());
}

TEST_CASE("proving an image tells of every byte before the trailer, block by block") {
  const TestImage image = image_of(0, 1);
  std::vector<std::uint64_t> pieces;
  const ImageInfo info =
      verify_image(image.bytes(), [&](std::uint64_t bytes) { pieces.push_back(bytes); });
  CHECK(info == image.info);
  REQUIRE(pieces.size() == 5);  // the manifest, and 16,000 bytes in blocks of 4,096
  CHECK(pieces[0] == info.manifest_bytes);
  CHECK(pieces[1] == 4096);
  std::uint64_t all = 0;
  for (const auto piece : pieces) all += piece;
  CHECK(all < info.image_bytes);
  CHECK(all >= info.manifest_bytes + 16'000);
}

TEST_CASE("a rank opens the files that it reads, each once, and the newest of all") {
  SharedDisk shared;
  Persistence files(shared.disk, "/disk", "job", 1, kWorld);
  CHECK(files.highest_generation() == 1);
  CHECK(shared.opened() == 1);
  CHECK(shared.disk.calls(FileOperation::kMap) == 0);
  files.enter(2);
  const auto before = shared.opened();
  const auto found =
      files.verify(kNoImage, [](const std::string& text) { FAIL_CHECK(text); }, false);
  CHECK(found.newest_named == ImageId{1, 2});
  // Alone in the directory it reads for the others, too: 8 images, of which 16 files are there.
  CHECK(found.claims.size() == 8);
  CHECK(shared.disk.calls(FileOperation::kMap) == 8);
  CHECK(shared.opened() - before <= 8 + 2);
  CHECK(files.verify({1, 1}, [](const std::string&) {}, false).claims.size() == 4);
  CHECK(shared.disk.calls(FileOperation::kMap) == 12);
}

TEST_CASE("of an image with two files the second is read if the first is damaged") {
  SharedDisk shared;
  Persistence files(shared.disk, "/disk", "job", 0, kWorld);
  files.enter(2);
  const auto own = list_names(shared.memory, "/disk", "job").back();  // rank 3's, step 2
  REQUIRE(own.name.holder);
  const auto path = to_file_name({"job", {1, 2}, 3, kWorld, {}});
  shared.memory.open("/disk/" + path, OpenMode::kReadWrite)->truncate(100);
  std::string complaints;
  const auto found = files.verify(kNoImage, [&](const std::string& text) { complaints += text; });
  CHECK(found.claims.size() == 8);
  CHECK_THAT(complaints, contains_text(path));
}

TEST_CASE("a file that hangs is shown, with how many of its bytes have come") {
  SharedDisk shared;
  Reads reads;
  Persistence files(shared.disk, "/disk", "job", 0, kWorld, &reads);
  files.enter(2);
  shared.disk.block(FileOperation::kMap);
  std::thread reader([&] { (void)files.verify({1, 1}, [](const std::string&) {}); });
  shared.disk.wait_until_blocked();
  const auto seen = reads.slowest();
  shared.disk.unblock();
  reader.join();
  REQUIRE(seen);
  CHECK(seen->path == "/disk/" + to_file_name({"job", {1, 2}, 0, kWorld, {}}));
  CHECK(how_far(*seen) == "0 bytes");
  CHECK_FALSE(reads.slowest());
}

TEST_CASE("a step of another number of ranks is shown file by file while it is read") {
  SharedDisk shared;
  Reads reads;
  std::map<std::string, std::uint64_t> bytes;
  FilesRead shown(&reads);
  const auto steps = list_steps_on_disk(shared.memory, "/disk", "job");
  (void)read_step(shared.memory, steps.back(), "job", {},
                  [&](const std::filesystem::path& file, std::uint64_t more, std::uint64_t of) {
                    shown(file, more, of);
                    CHECK(reads.slowest()->path == file.string());
                    CHECK(reads.slowest()->of == of);
                    bytes[file.string()] += more;
                  });
  CHECK(bytes.size() == kWorld);
  for (const auto& [file, all] : bytes) CHECK(all >= 16'000);
}

TEST_CASE("a file to which the reading comes back goes on counting") {
  Reads reads;
  FilesRead shown(&reads);
  shown("/a", 10, 100);
  shown("/b", 20, 200);
  shown("/a", 5, 100);
  CHECK(reads.slowest()->path == "/a");
  CHECK(how_far(*reads.slowest()) == "15 of 100 bytes");
}

TEST_CASE("the pages of a file that are read ahead are told in pieces") {
  Reads reads;
  Reads::Reading reading(&reads, "/a");
  const std::vector<std::byte> bytes(3'000'000);
  replicate::read_pages(bytes, reading);
  CHECK(reads.slowest()->bytes == bytes.size());
}
