#include <meshstage/core/reshard/step_on_disk.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/tree/compare.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tests/reshard/cut_rows.hpp"
#include "tests/reshard/old_job.hpp"
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

TEST_CASE(
    "a rank of the new job reads its own part of the old states, and its share of the copies") {
  CutRows job;
  const auto first = job.assemble(0);
  // Its rows lie at ranks 0 and 1; it compares rank 2's plain tensor with rank 0's.
  const std::uint64_t at_least[] = {kRowsOfRank + 2 * kPlain, kRowsOfRank, kPlain, 0};
  for (std::size_t rank = 0; rank < kBefore; ++rank) {
    INFO(rank);
    CHECK(first[rank] >= at_least[rank]);
    CHECK(first[rank] <= at_least[rank] + kEnds);
  }
  const auto second = job.assemble(1);
  const std::uint64_t at_least_there[] = {kPlain, kPlain + kPlain, kRowsOfRank,
                                          kRowsOfRank + kPlain};
  for (std::size_t rank = 0; rank < kBefore; ++rank) {
    INFO(rank);
    CHECK(second[rank] >= at_least_there[rank]);
    CHECK(second[rank] <= at_least_there[rank] + kEnds);
  }
  CHECK(job.complaints.empty());
}

TEST_CASE("a damaged block is found by the rank that needs it, which then takes the replica") {
  CutRows job;
  const PersistedName own{"gpt", {1, 9}, 1, kBefore, {}};
  job.publish(own, job.byte_of_row(1, 3));
  (void)job.assemble(1);  // needs no row of rank 1
  CHECK(job.complaints.empty());
  (void)job.assemble(0);
  REQUIRE(job.complaints.size() == 1);
  CHECK_THAT(job.complaints[0], Contains("ignoring /d/") && Contains("r00001of00004.own") &&
                                    Contains("does not match its digest"));
  job.publish({"gpt", {1, 9}, 1, kBefore, 2}, job.byte_of_row(1, 15));
  try {
    (void)job.assemble(0);
    FAIL("nothing was thrown");
  } catch (const CorruptData& e) {
    CHECK(e.rank() == 1);
    CHECK(e.step() == 9);
    CHECK_THAT(e.what(), Contains("no file of rank 1 of 4 of generation 1, step 9 is sound") &&
                             Contains(".own") && Contains(".held-by-"));
  }
}

TEST_CASE("the plain values of every rank are proven before they are used") {
  CutRows job;
  job.publish({"gpt", {1, 9}, 3, kBefore, {}}, job.images[3].plan.layout().values_begin + 9);
  (void)job.assemble(0);  // needs no tensor of rank 3
  REQUIRE(job.complaints.size() == 1);
  CHECK_THAT(job.complaints[0], Contains("r00003of00004.own"));
}

TEST_CASE("a plain tensor that differs at one old rank is found by the rank that compares it") {
  CutRows job;
  // "mine" is another number at each old rank: rank 0 compares rank 2's with rank 0's.
  for (const int rank : {0, 1}) {
    INFO(rank);
    CHECK_THROWS_AS(job.assemble(rank, PlainKind::kSame), StructureMismatch);
  }
  (void)job.assemble(0, PlainKind::kFirst);
  (void)job.assemble(1, PlainKind::kFirst);
}
