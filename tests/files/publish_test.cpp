#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/os/memory_file_system.hpp>

#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

using meshstage::FaultyFileSystem;
using meshstage::FileOperation;
using meshstage::MemoryFileSystem;
using meshstage::OpenMode;

namespace {

void publish(meshstage::FileSystem& fs, const std::string& text,
             const std::filesystem::path& path = "/d/image") {
  meshstage::publish_atomically(fs, path, std::as_bytes(std::span(text)));
}

std::string contents(meshstage::FileSystem& fs, const std::filesystem::path& path = "/d/image") {
  return meshstage::read_text(fs, path).value_or("(none)");
}

}  // namespace

TEST_CASE("a published file is its pieces, in order, 0600, and nothing else is left") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  const std::string a = "head";
  const std::string b;
  const std::string c(100000, 'x');
  const std::vector<std::span<const std::byte>> pieces{
      std::as_bytes(std::span(a)), std::as_bytes(std::span(b)), std::as_bytes(std::span(c))};
  meshstage::publish_atomically(fs, directory.path() / "image", pieces);
  REQUIRE(contents(fs, directory.path() / "image") == a + c);
  REQUIRE(fs.stat(directory.path() / "image")->mode == 0600);
  publish(fs, "new", directory.path() / "image");
  REQUIRE(contents(fs, directory.path() / "image") == "new");
  REQUIRE(fs.list(directory.path()) == std::vector<std::string>{"image"});
  REQUIRE_THROWS_AS(publish(fs, "x", directory.path() / "none" / "image"), meshstage::IoError);
}

TEST_CASE(
    "each step failing in turn keeps the old file whole, leaves nothing, and the next try works") {
  for (const int error : {ENOSPC, EIO, EACCES, EMFILE}) {
    for (std::uint64_t nth = 1;; ++nth) {
      MemoryFileSystem disk;
      disk.make_directories("/d");
      publish(disk, "old");
      FaultyFileSystem fs(disk);
      fs.shorten_writes(2);
      fs.fail_any(nth, error);
      bool threw = false;
      try {
        publish(fs, "the new one");
      } catch (const meshstage::SystemError& e) {
        threw = true;
        REQUIRE(e.error_number() == error);
      }
      const auto fired = fs.fired();
      fs.clear_faults();
      INFO("call " << nth << ": " << (fired ? to_string(*fired) : "none"));
      REQUIRE(threw == fired.has_value());
      if (fired == FileOperation::kSyncDirectory || !fired) {
        REQUIRE(contents(disk) == "the new one");
      } else {
        REQUIRE(contents(disk) == "old");
      }
      REQUIRE(disk.list("/d") == std::vector<std::string>{"image"});
      publish(fs, "third");
      REQUIRE(contents(disk) == "third");
      if (!fired) {
        REQUIRE(nth > 11);  // unlink, open, lock, two stats, six short writes, sync, rename, sync
        break;
      }
    }
  }
}

TEST_CASE("power loss at every step keeps the old file or the new one, whole") {
  int old_kept = 0;
  int new_kept = 0;
  for (std::uint64_t nth = 1;; ++nth) {
    MemoryFileSystem disk;
    disk.make_directories("/d");
    publish(disk, "old");
    FaultyFileSystem fs(disk);
    fs.shorten_writes(4);
    fs.fail_from(nth, EIO);  // the process sees nothing of the disk any more
    bool done = true;
    try {
      publish(fs, "the new one");
    } catch (const meshstage::SystemError&) {
      done = false;
    }
    fs.clear_faults();
    disk.lose_power();
    INFO("call " << nth);
    const auto there = contents(disk);
    REQUIRE((there == "old" || there == "the new one"));
    ++(there == "old" ? old_kept : new_kept);
    if (done) {
      REQUIRE(there == "the new one");  // it said so
      break;
    }
  }
  REQUIRE(old_kept > 5);
  REQUIRE(new_kept == 1);
}

TEST_CASE("the file system in memory does lose what publish would lose without its syncs") {
  MemoryFileSystem disk;
  disk.make_directories("/d");
  publish(disk, "old");
  const std::string text = "new";
  meshstage::write_fully(*disk.open("/d/t", OpenMode::kCreateExclusive),
                         std::as_bytes(std::span(text)), 0);
  disk.rename("/d/t", "/d/image");
  disk.sync_directory("/d");  // the name without the bytes
  disk.lose_power();
  REQUIRE(contents(disk).empty());
}

TEST_CASE("leftovers of the dead are removed, those of the living and other files are not") {
  MemoryFileSystem disk;
  disk.make_directories("/d");
  const auto dead = disk.as_process(70);
  {
    FaultyFileSystem fs(*dead);
    fs.fail_from(8, EIO);
    REQUIRE_THROWS_AS(publish(fs, "never finished"), meshstage::SystemError);
  }
  REQUIRE(disk.list("/d").size() == 1);
  const auto alive = disk.as_process(71);
  const auto writing = alive->open("/d/.image.tmp-71-1-1", OpenMode::kCreateExclusive);
  REQUIRE(writing->try_lock());
  publish(disk, "kept");
  (void)disk.open("/d/.hidden", OpenMode::kCreateExclusive);
  (void)disk.open("/d/image.tmp-1-1-1", OpenMode::kCreateExclusive);
  REQUIRE(meshstage::remove_leftovers(disk, "/d") == 1);
  REQUIRE(disk.list("/d") ==
          std::vector<std::string>{".hidden", ".image.tmp-71-1-1", "image", "image.tmp-1-1-1"});
  REQUIRE(writing->try_lock());
  REQUIRE(meshstage::remove_leftovers(disk, "/none") == 0);
}

TEST_CASE(
    "leftovers are not looked for among this process's own files: closing one would unlock it") {
  MemoryFileSystem disk;
  disk.make_directories("/d");
  const auto self = disk.process();
  const std::string mine =
      "/d/.image.tmp-" + std::to_string(self.pid) + "-" + std::to_string(self.instance) + "-5";
  const auto writing = disk.open(mine, OpenMode::kCreateExclusive);
  REQUIRE(writing->try_lock());
  REQUIRE(meshstage::remove_leftovers(disk, "/d") == 0);
  REQUIRE_FALSE(disk.as_process(9)->open(mine, OpenMode::kReadWrite)->try_lock());
}

TEST_CASE("two threads publishing one name leave one of the two files whole") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  const std::string a(200000, 'a');
  const std::string b(100000, 'b');
  std::vector<std::string> errors(2);
  const auto run = [&](std::size_t which, const std::string& text) {
    try {
      for (int i = 0; i < 20; ++i) publish(fs, text, directory.path() / "image");
    } catch (const meshstage::Error& e) {
      errors[which] = e.what();
    }
  };
  {
    std::thread other([&] { run(1, b); });
    run(0, a);
    other.join();
  }
  REQUIRE(errors == std::vector<std::string>(2));
  const auto there = contents(fs, directory.path() / "image");
  REQUIRE((there == a || there == b));
  REQUIRE(fs.list(directory.path()).size() == 1);
}
