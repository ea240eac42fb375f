// A recovery from a real directory in which files stand that are not this user's images.
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/replicate/persistence.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"
#include "tests/support/temp_directory.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

TestImage image_of(std::uint64_t step) {
  return make_image(Dict{{"weight", Tensor::arange<float>(100)}}, {.block_bytes = 4096},
                    ImageIdentity{"job", 0, 1, {1, step}});
}

}  // namespace

TEST_CASE("no claim comes of a FIFO, a link or a file that others may write; each is named") {
  const TempDirectory directory, elsewhere;
  const auto name_of = [](std::uint64_t step) {
    return to_file_name({"job", {1, step}, 0, 1, {}});
  };
  const auto publish = [](const std::filesystem::path& at, std::uint64_t step) {
    const TestImage image = image_of(step);
    Persistence(real_file_system(), at, "job", 0, 1).publish(image.info, image.bytes());
  };
  const auto path_of = [&](std::uint64_t step) { return directory.path() / name_of(step); };
  publish(directory.path(), 1);
  REQUIRE(::mkfifo(path_of(2).c_str(), 0600) == 0);
  publish(elsewhere.path(), 3);  // sound, and this user's own
  std::filesystem::create_symlink(elsewhere.path() / name_of(3), path_of(3));
  publish(directory.path(), 4);
  REQUIRE(::chmod(path_of(4).c_str(), 0660) == 0);

  Persistence files(real_file_system(), directory.path(), "job", 0, 1);
  files.enter(2);
  std::vector<std::string> complaints;
  const auto found =
      files.verify(kNoImage, [&](const std::string& text) { complaints.push_back(text); });
  files.leave();
  REQUIRE(found.claims.size() == 1);
  CHECK(found.claims[0].id == ImageId{1, 1});
  CHECK(found.newest_named == ImageId{1, 1});
  const std::vector<std::pair<std::uint64_t, std::string>> expected{
      {2, "no regular file"}, {3, "symbolic link"}, {4, "can be written by others"}};
  for (const auto& [step, why] : expected) {
    INFO(why);
    CHECK(std::count_if(complaints.begin(), complaints.end(), [&](const std::string& c) {
            return c.find(path_of(step).native()) != std::string::npos &&
                   c.find(why) != std::string::npos;
          }) == 1);
  }
}
