#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/safetensors.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/os/memory_file_system.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

using meshstage::ImageId;
using meshstage::InvalidArgument;
using meshstage::list_images;
using meshstage::MemoryFileSystem;
using meshstage::PersistedName;
using meshstage::prune;
using meshstage::to_file_name;

namespace {

void touch(meshstage::FileSystem& fs, const std::filesystem::path& path,
           const std::string& text = "x") {
  meshstage::write_fully(*fs.open(path, meshstage::OpenMode::kCreateExclusive),
                         std::as_bytes(std::span(text)), 0);
}

/// prune()'s caller is one of `world` ranks, which remove what each of them wrote.
std::function<bool(int)> by(int rank, int world) {
  return [rank, world](int writer) { return writer % world == rank; };
}

meshstage::EnvironmentLookup environment(const std::map<std::string, std::string>& variables) {
  return [variables](const char* name) -> std::optional<std::string> {
    const auto at = variables.find(name);
    if (at == variables.end()) return std::nullopt;
    return at->second;
  };
}

}  // namespace

TEST_CASE("the name of a persisted image says everything, sorts by age, and is read back") {
  const PersistedName own{"gpt2", {3, 85}, 2, 4, {}};
  const PersistedName held{"gpt2", {3, 85}, 2, 4, 0};
  REQUIRE(to_file_name(own) == "gpt2.g000003.s000000000085.r00002of00004.own.safetensors");
  REQUIRE(to_file_name(held) ==
          "gpt2.g000003.s000000000085.r00002of00004.held-by-00000.safetensors");
  REQUIRE(own.writer() == 2);
  REQUIRE(held.writer() == 0);
  REQUIRE(to_file_name({"gpt2", {3, 9}, 2, 4, {}}) < to_file_name(own));
  REQUIRE(to_file_name({"gpt2", {2, 100}, 2, 4, {}}) < to_file_name(own));
  for (const std::string job :
       {"a", "a.g1.s2.r0of1.own", "x.safetensors", "...", "1-2_3", ".own"}) {
    for (const auto id : {ImageId{1, 0}, ImageId{~std::uint64_t{0}, ~std::uint64_t{0}}}) {
      for (const auto holder : {std::optional<int>(), std::optional<int>(123456)}) {
        const PersistedName name{job, id, 70000, 200000, holder};
        const auto parsed = meshstage::parse_file_name(to_file_name(name));
        INFO(to_file_name(name));
        REQUIRE(parsed);
        REQUIRE(*parsed == name);
      }
    }
  }
}

TEST_CASE("what is not such a name to the letter is none") {
  for (const char* name : {"", "gpt2.safetensors", "gpt2.g3.s85.r2of4.own.safetensors",
                           "gpt2.g000003.s000000000085.r00002of00004.own",
                           "gpt2.g000003.s000000000085.r00002of00004.safetensors",
                           "gpt2.g0000003.s000000000085.r00002of00004.own.safetensors",
                           "gpt2.g000000.s000000000085.r00002of00004.own.safetensors",
                           "gpt2.g000003.s000000000085.r00004of00004.own.safetensors",
                           "gpt2.g000003.s000000000085.r00002of00004.held-by-00002.safetensors",
                           "gpt2.g000003.s000000000085.r00002of00004.held-by-00004.safetensors",
                           "gpt2.g000003.s000000000085.r00002of00004.held-by-.safetensors",
                           ".g000003.s000000000085.r00002of00004.own.safetensors",
                           "a b.g000003.s000000000085.r00002of00004.own.safetensors",
                           "gpt2.g99999999999999999999.s000000000085.r00002of00004.own.safetensors",
                           ".gpt2.g000003.s000000000085.r00002of00004.own.safetensors.tmp-1-2-3"}) {
    INFO(name);
    REQUIRE_FALSE(meshstage::parse_file_name(name));
  }
  REQUIRE_THROWS_AS(to_file_name({"a/b", {1, 1}, 0, 1, {}}), InvalidArgument);
  REQUIRE_THROWS_AS(to_file_name({"a", {0, 1}, 0, 1, {}}), InvalidArgument);
  REQUIRE_THROWS_AS(to_file_name({"a", {1, 1}, 1, 1, {}}), InvalidArgument);
  REQUIRE_THROWS_AS(to_file_name({"a", {1, 1}, -1, 1, {}}), InvalidArgument);
  REQUIRE_THROWS_AS(to_file_name({"a", {1, 1}, 0, 2, 0}), InvalidArgument);
}

TEST_CASE("images are listed by age, then rank, own before replicas; other files are not") {
  MemoryFileSystem fs;
  fs.make_directories("/d");
  const std::vector<PersistedName> names{{"a", {1, 5}, 0, 2, {}}, {"a", {1, 5}, 0, 2, 1},
                                         {"a", {1, 5}, 1, 2, {}}, {"a", {1, 10}, 0, 2, {}},
                                         {"a", {2, 5}, 0, 2, {}}, {"b", {1, 1}, 0, 1, {}}};
  for (auto at = names.rbegin(); at != names.rend(); ++at)
    touch(fs, "/d/" + to_file_name(*at), "12345");
  touch(fs, "/d/model.safetensors");
  const auto all = list_images(fs, "/d", "");
  REQUIRE(all.size() == names.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    REQUIRE(all[i].name == names[i]);
    REQUIRE(all[i].bytes == 5);
    REQUIRE(all[i].path == "/d/" + to_file_name(names[i]));
  }
  REQUIRE(list_images(fs, "/d", "b").size() == 1);
  REQUIRE(list_images(fs, "/none", "a").empty());
}

TEST_CASE("pruning takes the writer's older images only, below what every rank has") {
  MemoryFileSystem fs;
  fs.make_directories("/d");
  const auto put = [&](int rank, ImageId id, std::optional<int> holder, const char* job = "a") {
    touch(fs, "/d/" + to_file_name({job, id, rank, 2, holder}));
  };
  for (const auto id : {ImageId{1, 5}, ImageId{1, 10}, ImageId{2, 1}, ImageId{2, 15}}) {
    put(0, id, {});
    put(1, id, 0);
    put(1, id, {});
    put(0, id, 1);
  }
  put(0, {1, 1}, {}, "b");
  const auto left = [&](int writer) {
    std::vector<ImageId> ids;
    for (const auto& image : list_images(fs, "/d", "a")) {
      if (image.name.writer() == writer) ids.push_back(image.name.id);
    }
    return ids;
  };
  REQUIRE(prune(fs, "/d", "a", by(0, 2), meshstage::kNoImage) == 0);
  REQUIRE(prune(fs, "/d", "a", by(0, 2), {1, 5}) == 0);
  REQUIRE(prune(fs, "/d", "a", by(0, 2), {2, 1}, 1) == 2);
  REQUIRE(left(0) == std::vector<ImageId>{{1, 10}, {1, 10}, {2, 1}, {2, 1}, {2, 15}, {2, 15}});
  REQUIRE(prune(fs, "/d", "a", by(0, 2), {2, 1}, 9) == 0);
  REQUIRE(prune(fs, "/d", "a", by(0, 2), {2, 15}) == 4);
  REQUIRE(left(0) == std::vector<ImageId>{{2, 15}, {2, 15}});
  REQUIRE(left(1).size() == 8);
  REQUIRE(list_images(fs, "/d", "b").size() == 1);
}

TEST_CASE("an interrupted pruning has removed the oldest and goes on next time") {
  MemoryFileSystem disk;
  disk.make_directories("/d");
  for (std::uint64_t step = 1; step <= 4; ++step)
    touch(disk, "/d/" + to_file_name({"a", {1, step}, 0, 1, {}}));
  meshstage::FaultyFileSystem fs(disk);
  fs.fail(meshstage::FileOperation::kUnlink, 2, EIO);
  REQUIRE_THROWS_AS(prune(fs, "/d", "a", by(0, 2), {1, 4}), meshstage::SystemError);
  REQUIRE(list_images(disk, "/d", "a").front().name.id == ImageId{1, 2});
  REQUIRE(prune(fs, "/d", "a", by(0, 2), {1, 4}) == 2);
}

TEST_CASE("a file is mapped whole, and stays readable when its name is gone") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  const std::string json = R"({"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})";
  std::string text(8, '\0');
  text[0] = static_cast<char>(json.size());
  text += json + "abc";
  const auto path = directory.path() / "a.safetensors";
  touch(fs, path, text);
  const auto file = meshstage::MappedFile::open(fs, path);
  REQUIRE(fs.unlink(path));
  REQUIRE(file->path() == path);
  REQUIRE(file->bytes().size() == text.size());
  const auto index = meshstage::SafetensorsIndex::parse(file->bytes());
  REQUIRE(file->bytes()[index.data_begin() + index.find("w")->begin] == std::byte{'a'});

  REQUIRE_THROWS_AS(meshstage::MappedFile::open(fs, path), meshstage::NotFound);
  touch(fs, path, "");
  REQUIRE_THROWS_AS(meshstage::MappedFile::open(fs, path), meshstage::CorruptData);
  REQUIRE_THROWS_AS(meshstage::MappedFile::open(fs, directory.path()), meshstage::IoError);
}

TEST_CASE("the default directory follows from user and job alone") {
  using meshstage::default_directory;
  REQUIRE(default_directory("j", 7, environment({{"XDG_STATE_HOME", "/x"}, {"HOME", "/h"}})) ==
          "/x/meshstage/j");
  REQUIRE(default_directory("j", 7, environment({{"HOME", "/h"}})) ==
          "/h/.local/state/meshstage/j");
  REQUIRE(default_directory("j", 7, environment({{"XDG_STATE_HOME", "relative"}, {"HOME", ""}})) ==
          "/var/tmp/meshstage-7/j");
  REQUIRE(default_directory("j", 7, environment({})) == "/var/tmp/meshstage-7/j");
  REQUIRE_THROWS_AS(default_directory("..", 7, environment({})), InvalidArgument);
  REQUIRE_THROWS_AS(default_directory("a/b", 7, environment({})), InvalidArgument);
  REQUIRE(default_directory("j").is_absolute());
}

TEST_CASE("a private directory is made 0700, and one that others may write is refused") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  const auto path = directory.path() / "state" / "job";
  meshstage::make_private_directory(fs, path);
  REQUIRE(fs.stat(path)->mode == 0700);
  REQUIRE(fs.stat(path.parent_path())->mode == 0700);
  meshstage::make_private_directory(fs, path);
  REQUIRE(::chmod(path.c_str(), 0770) == 0);
  REQUIRE_THROWS_AS(meshstage::make_private_directory(fs, path), meshstage::InvalidState);
  touch(fs, directory.path() / "file");
  REQUIRE_THROWS_AS(meshstage::make_private_directory(fs, directory.path() / "file"),
                    meshstage::InvalidState);
}

TEST_CASE("a job is restored from its own files alone; the others are named and passed over") {
  const TempDirectory directory;
  auto& fs = meshstage::real_file_system();
  const auto path_of = [&](std::uint64_t generation, std::uint64_t step) {
    return directory.path() / to_file_name({"a", {generation, step}, 0, 1, {}});
  };
  touch(fs, path_of(1, 1));
  touch(fs, path_of(1, 2));
  REQUIRE(::chmod(path_of(1, 2).c_str(), 0660) == 0);
  REQUIRE(::mkfifo(path_of(1, 3).c_str(), 0600) == 0);
  std::filesystem::create_directory(path_of(1, 4));
  std::filesystem::create_symlink(path_of(1, 1), path_of(1, 5));
  touch(fs, path_of(~std::uint64_t{0}, 6));
  touch(fs, path_of(1, 7));
  const bool chowned = ::chown(path_of(1, 7).c_str(), 4711, 4711) == 0;  // root's to do
  if (!chowned) REQUIRE(fs.unlink(path_of(1, 7)));

  std::vector<std::string> complaints;
  const auto complain = [&](const std::string& text) { complaints.push_back(text); };
  const auto images = meshstage::list_own_images(fs, directory.path(), "a", complain);
  REQUIRE(images.size() == 1);
  REQUIRE(images[0].name.id == ImageId{1, 1});
  const std::vector<std::pair<std::filesystem::path, std::string>> expected{
      {path_of(1, 2), "can be written by others"},
      {path_of(1, 3), "no regular file"},
      {path_of(1, 5), "symbolic link"},
      {path_of(1, 7), "belongs to user 4711"},
      {path_of(~std::uint64_t{0}, 6), "no job reaches generation 18446744073709551615"}};
  REQUIRE(complaints.size() == (chowned ? 5 : 4));  // a directory is no image's name at all
  for (const auto& [path, why] : expected) {
    if (!chowned && path == path_of(1, 7)) continue;
    const auto named = std::find_if(complaints.begin(), complaints.end(), [&](const auto& c) {
      return c.find(path.native()) != std::string::npos && c.find(why) != std::string::npos;
    });
    INFO(path.native() << ": " << why);
    REQUIRE(named != complaints.end());
  }
  // By names alone all are there but the one that no job reaches; the newest own one is found.
  const auto names = meshstage::list_names(fs, directory.path(), "a");
  REQUIRE(names.size() == (chowned ? 6 : 5));
  REQUIRE(names.front().bytes == 0);
  REQUIRE(meshstage::newest_own_image(fs, names)->name.id == ImageId{1, 1});
  REQUIRE_THROWS_AS(meshstage::MappedFile::open_own(fs, path_of(1, 2)), meshstage::InvalidState);
  REQUIRE_THROWS_AS(meshstage::MappedFile::open_own(fs, path_of(1, 3)), meshstage::IoError);
  REQUIRE_THROWS_AS(meshstage::MappedFile::open(fs, path_of(1, 3)), meshstage::IoError);

  REQUIRE(::chmod(directory.path().c_str(), 0777) == 0);
  complaints.clear();
  REQUIRE(meshstage::list_own_images(fs, directory.path(), "a", complain).empty());
  REQUIRE(complaints.size() == 1);
}

TEST_CASE("what ranks wrote that there are no more is removed by those there are") {
  MemoryFileSystem disk;
  disk.make_directories("/d");
  for (int rank = 0; rank < 5; ++rank)
    touch(disk, "/d/" + to_file_name({"a", {1, 1}, rank, 5, {}}));
  REQUIRE(prune(disk, "/d", "a", by(0, 3), {2, 1}) == 2);  // 0 and 3
  REQUIRE(prune(disk, "/d", "a", by(1, 3), {2, 1}) == 2);  // 1 and 4
  REQUIRE(list_images(disk, "/d", "a").front().name.rank == 2);
}

TEST_CASE("pruning removes what dead writers left") {
  MemoryFileSystem disk;
  disk.make_directories("/d");
  touch(disk, "/d/.x.tmp-1-1-1");
  touch(disk, "/d/" + to_file_name({"a", {1, 1}, 0, 1, {}}));
  REQUIRE(prune(disk, "/d", "a", by(0, 1), {1, 2}) == 1);
  REQUIRE(disk.list("/d").empty());
}
