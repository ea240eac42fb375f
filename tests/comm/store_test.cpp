#include <meshstage/core/comm/store.hpp>

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <meshstage/core/comm/redis/store.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/conformance/store_suite.hpp"
#include "tests/support/catch.hpp"

using meshstage::testing::ranks_form_over;
using meshstage::testing::store_conforms;
using meshstage::testing::TemporaryFolder;

TEST_CASE("the file store conforms") {
  const TemporaryFolder folder;
  store_conforms([&] { return std::make_shared<meshstage::FileStore>(folder.path() + "/store"); });
}

TEST_CASE("ranks form over a file store") {
  const TemporaryFolder folder;
  ranks_form_over([&] { return std::make_shared<meshstage::FileStore>(folder.path() + "/store"); });
}

TEST_CASE("the in-memory store conforms") {
  const auto store = std::make_shared<meshstage::InMemoryStore>();
  store_conforms([&] { return store; });
}

TEST_CASE("a file store is its owner's alone and leaves no temporary file") {
  const TemporaryFolder folder;
  meshstage::FileStore store(folder.path() + "/deep/er");
  struct stat status{};
  REQUIRE(::stat(store.directory().c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0700);
  store.set("a", "1");
  store.set("a", "2");
  CHECK(store.compare_and_create("a", "3") == "2");
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(store.directory())) {
    files += entry.is_regular_file() ? 1 : 0;
  }
  CHECK(files == 1);
}

TEST_CASE("a store is named by a path or a file address, and nothing else is guessed") {
  const TemporaryFolder folder;
  meshstage::open_store("file:" + folder.path() + "/s")->set("k", "v");
  CHECK(meshstage::open_store(folder.path() + "/s")->get("k") == "v");
  for (const char* bad : {"",
                          "relative/path",
                          "file:relative",
                          "tcp://",
                          "tcp://host",
                          "tcp://:1",
                          "tcp://host:0",
                          "tcp://host:99999",
                          "tcp://host:1x",
                          "redis://",
                          "redis://host:x",
                          "redis://host/x",
                          "redis://password@host",
                          "http://host:1",
                          "127.0.0.1:29400",
                          "tcp://10.0.0.300:1",
                          "tcp://[::1::]:1",
                          "tcp://my host:1",
                          "tcp://host/:1",
                          "redis://10.0.0.300"}) {
    INFO(bad);
    try {
      (void)meshstage::open_store(bad);
      FAIL("accepted");
    } catch (const meshstage::InvalidArgument& e) {
      CHECK_THAT(e.what(), Catch::Matchers::Contains("file:/path"));
    }
  }
}

TEST_CASE("hosts are named by address or by any name that could be one") {
  for (const char* good : {"tcp://10.0.0.30:1", "tcp://[::1]:1", "tcp://store-0.store:1",
                           "tcp://node_7:29400", "tcp://7up.example:1"}) {
    INFO(good);
    CHECK_NOTHROW(meshstage::open_store(good));
  }
}

TEST_CASE("what an address keeps secret is not shown") {
  CHECK(meshstage::without_password("redis://me:secret@host:1/2") == "redis://...@host:1/2");
  CHECK(meshstage::without_password("redis://host") == "redis://host");
  CHECK(meshstage::without_password("file:/a@b") == "file:/a@b");
  try {
    (void)meshstage::open_store("redis://me:secret@host:x");
    FAIL("accepted");
  } catch (const meshstage::InvalidArgument& e) {
    CHECK_THAT(e.what(), !Catch::Matchers::Contains("secret"));
  }
}

TEST_CASE("files that no store has written are passed over, and waited for never") {
  const TemporaryFolder folder;
  meshstage::FileStore store(folder.path());
  store.set("a", "1");
  const std::filesystem::path at = folder.path();
  for (const char* name : {"%", "%4", "%zz", "a%4", "b%41", "%2B", "tmp file"}) {
    std::ofstream(at / name) << "x";
  }
  std::filesystem::create_directory(at / "folder");
  REQUIRE(::mkfifo((at / "pipe").c_str(), 0600) == 0);
  std::filesystem::create_symlink(at / "a", at / "link");
  CHECK(store.list("") == std::vector<std::string>{"a", "folder", "link", "pipe"});
  for (const char* key : {"folder", "link", "pipe"}) {
    INFO(key);
    CHECK_THROWS_AS(store.get(key), meshstage::IoError);
    CHECK_THROWS_AS(store.compare_and_create(key, "x"), meshstage::IoError);
  }
  CHECK(store.get("a") == "1");
}

TEST_CASE("a store whose folder went away says so") {
  const TemporaryFolder folder;
  meshstage::FileStore store(folder.path() + "/store");
  std::filesystem::remove_all(store.directory());
  CHECK_THROWS_AS(store.list(""), meshstage::IoError);
  CHECK_THROWS_AS(store.set("a", "1"), meshstage::IoError);
  CHECK_FALSE(store.get("a"));
}

TEST_CASE("the folders that a store makes are its owner's alone, whatever the umask") {
  const TemporaryFolder folder;
  for (const mode_t mask : {0000, 0002, 0777}) {
    INFO(mask);
    const std::filesystem::path job = folder.path() + "/" + std::to_string(mask);
    const mode_t before = ::umask(mask);
    const meshstage::FileStore store(job / "store");
    ::umask(before);
    for (const auto& made : {job, store.directory()}) {
      struct stat status{};
      REQUIRE(::stat(made.c_str(), &status) == 0);
      CHECK((status.st_mode & 0777) == 0700);
    }
  }
}
