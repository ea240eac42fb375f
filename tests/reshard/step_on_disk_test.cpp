#include <meshstage/core/reshard/step_on_disk.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/tree/compare.hpp>

#include <optional>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

class Files {
 public:
  Files() { make_private_directory(disk, "/d"); }

  void write(const PersistedName& name, bool damaged = false, int value_of = -1) {
    const int rank = value_of < 0 ? name.rank : value_of;
    const auto image = make_image(Dict{{"rank", rank}, {"t", Tensor::full<float>({4}, 1)}}, {},
                                  {name.job, rank, name.world_size, name.id, kNoImage});
    if (damaged) image.bytes()[image.info.manifest_bytes] ^= std::byte{1};
    publish_atomically(disk, std::filesystem::path("/d") / to_file_name(name), image.bytes());
  }
  [[nodiscard]] std::vector<StepOnDisk> steps() { return list_steps_on_disk(disk, "/d", "gpt"); }

  MemoryFileSystem disk;
};

}  // namespace

TEST_CASE("steps on disk are those with a file of every rank, of any number of ranks, by age") {
  Files files;
  CHECK(files.steps().empty());
  for (int rank = 0; rank < 3; ++rank) files.write({"gpt", {1, 9}, rank, 3, {}});
  files.write({"gpt", {1, 9}, 0, 2, {}});  // half of another number of ranks
  files.write({"gpt", {2, 4}, 0, 2, {}});
  files.write({"gpt", {2, 4}, 1, 2, 0});   // a copy is as good
  files.write({"gpt", {2, 5}, 1, 2, {}});  // rank 0's is not there yet
  files.write({"other", {7, 7}, 0, 1, {}});
  const auto steps = files.steps();
  REQUIRE(steps.size() == 2);
  CHECK(steps[0].id == ImageId{1, 9});
  CHECK(steps[0].world_size == 3);
  CHECK(steps[1].id == ImageId{2, 4});
  CHECK(steps[1].world_size == 2);
  const auto states = read_step(files.disk, steps[1], "gpt");
  REQUIRE(states.size() == 2);
  CHECK(states[1].at("rank").as<int>() == 1);
}

TEST_CASE("a damaged file is passed over for a copy; without one the rank is named") {
  Files files;
  files.write({"gpt", {1, 9}, 0, 2, {}});
  files.write({"gpt", {1, 9}, 1, 2, {}}, true);
  std::vector<std::string> complaints;
  const auto complain = [&](const std::string& text) { complaints.push_back(text); };
  try {
    (void)read_step(files.disk, files.steps().at(0), "gpt", complain);
    FAIL("nothing was thrown");
  } catch (const CorruptData& e) {
    CHECK(e.rank() == 1);
    CHECK(e.step() == 9);
    CHECK_THAT(e.what(), Contains("no file of rank 1 of 2 of generation 1, step 9 is sound"));
  }
  files.write({"gpt", {1, 9}, 1, 2, 0});
  complaints.clear();
  const auto states = read_step(files.disk, files.steps().at(0), "gpt", complain);
  CHECK(states.at(1).at("rank").as<int>() == 1);
  REQUIRE(complaints.size() == 1);
  CHECK_THAT(complaints[0], Contains("r00001of00002.own"));
}

TEST_CASE("a file that holds another rank's image is not taken for what its name says") {
  Files files;
  files.write({"gpt", {1, 9}, 0, 2, {}});
  files.write({"gpt", {1, 9}, 1, 2, {}}, false, 0);
  CHECK_THROWS_AS(read_step(files.disk, files.steps().at(0), "gpt"), CorruptData);
}

TEST_CASE("what is read stays when the files go") {
  Files files;
  files.write({"gpt", {1, 9}, 0, 1, {}});
  const auto states = read_step(files.disk, files.steps().at(0), "gpt");
  for (const auto& name : files.disk.list("/d")) files.disk.unlink("/d/" + name);
  CHECK(same_bits(states[0].at("t").as<Tensor>(), Tensor::full<float>({4}, 1)));
}
