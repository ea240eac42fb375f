// A step whose files lie on the disks of two hosts: what a rank gets of the other host's.
#include <meshstage/core/reshard/step_parts.hpp>

#include <algorithm>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>

#include "tests/reshard/two_hosts.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;
using detail::ImagePart;
using detail::StepParts;

namespace {

void copy(const StepStates& to, const StepStates& from, const ImagePart& part) {
  const auto [bytes, path] = StepParts::bytes(from, part);
  CHECK(path.filename() == to_file_name({"gpt", {1, 9}, part.old_rank, kBefore, {}}));
  std::copy(bytes.begin(), bytes.end(), StepParts::room(to, part).begin());
}

}  // namespace

TEST_CASE("a rank gets the parts of another host's files that it needs, and no more") {
  TwoHosts hosts;
  for (const int rank : {0, 1}) {
    INFO(rank);
    const int host = rank;
    const auto old = with_ends(hosts, host);
    const auto other = hosts.open(1 - host);
    const CutRows::NewRank now(rank);
    const auto parts = needed_by(*old, now, rank);
    std::vector<std::uint64_t> bytes(kBefore);
    for (const ImagePart& part : parts) {
      bytes.at(static_cast<std::size_t>(part.old_rank)) += part.end - part.begin;
      copy(*old, *other, part);
    }
    // Rank 0 has old rank 0's rows and needs old rank 1's; rank 1 has old rank 3's and needs old
    // rank 2's, and the plain tensor of old rank 0. What is alike is compared as in other cases.
    const std::uint64_t at_least[2][kBefore] = {{0, kRowsOfRank, 0, 0},
                                                {kPlain, 0, kRowsOfRank, 0}};
    for (std::size_t r = 0; r < kBefore; ++r) {
      INFO(r);
      CHECK(bytes[r] >= at_least[rank][r]);
      CHECK(bytes[r] <= at_least[rank][r] + kEnds);
    }
    Assembly::plan(*old, now.state, rank, 2, CutRows::options()).write();
    now.check();
    CHECK(now.state.at("mine").as<Tensor>().span<float>()[7] == static_cast<float>(rank));
  }
  CHECK(hosts.complaints.empty());
}

TEST_CASE("a file that the caller has proven is not read again, another one is") {
  CutRows job;
  const auto proven =
      MappedFile::open_own(job.disk, CutRows::path_of({"gpt", {1, 9}, 0, kBefore, {}}));
  (void)verify_image(proven->bytes());
  std::vector<std::uint64_t> read(kBefore);
  const auto old =
      StepParts::open(job.disk, StepParts::find(job.disk, "/d", "gpt", {1, 9}, kBefore), "gpt", {},
                      [&](const std::filesystem::path& file, std::uint64_t more, std::uint64_t) {
                        const auto name = parse_file_name(file.filename().string());
                        read.at(static_cast<std::size_t>(name->rank)) += more;
                      },
                      nullptr, {proven});
  const CutRows::NewRank now(0);  // has the rows of old ranks 0 and 1
  Assembly::plan(*old, now.state, 0, 2, CutRows::options()).write();
  now.check();
  CHECK(read[0] == job.images[0].info.manifest_bytes);
  CHECK(read[1] >= kRowsOfRank);
}

TEST_CASE("a part that is not what its host has proven is found, and so is one that did not come") {
  TwoHosts hosts;
  const auto old = with_ends(hosts, 0);
  const auto other = hosts.open(1);
  const CutRows::NewRank now(0);
  const auto parts = needed_by(*old, now, 0);
  REQUIRE(!parts.empty());
  SECTION("a byte is another") {
    for (const ImagePart& part : parts) copy(*old, *other, part);
    StepParts::room(*old, parts.front())[4096] ^= std::byte{1};
  }
  SECTION("nothing came") {}
  CHECK(!StepParts::came_damaged(*old));
  try {
    (void)Assembly::plan(*old, now.state, 0, 2, CutRows::options());
    FAIL("nothing was thrown");
  } catch (const CorruptData& e) {
    CHECK(e.rank() == 1);
    CHECK_THAT(e.what(), Contains("no file of rank 1 of 4") && Contains("the other:") &&
                             Contains("does not match its digest"));
  }
  CHECK(StepParts::came_damaged(*old));
}

TEST_CASE("ends that are damaged, of another rank or too short are refused by their origin") {
  TwoHosts hosts;
  const auto old = hosts.open(0);
  const auto other = hosts.open(1);
  auto ends = StepParts::ends(*other, 1);
  std::string why = "does not match its digest";
  SECTION("a byte of the manifest is another") { ends[24 + 200] ^= std::byte{1}; }
  SECTION("a byte of the values is another") { ends[ends.size() - 4096] ^= std::byte{1}; }
  SECTION("another rank's") {
    ends = StepParts::ends(*other, 3);
    why = "rank 3";
  }
  SECTION("cut") {
    ends.pop_back();
    why = "from the other is not its ends: its sizes do not go together";
  }
  SECTION("empty") {
    ends.clear();
    why = "it is too short";
  }
  try {
    StepParts::add(*old, 1, ends, "the other");
    FAIL("nothing was thrown");
  } catch (const CorruptData& e) {
    CHECK_THAT(e.what(), Contains(why));
  }
  CHECK(!StepParts::has(*old, 1));
}

TEST_CASE("what fits no structure is refused before any part is asked for") {
  TwoHosts hosts;
  const auto old = with_ends(hosts, 0);
  CutRows::NewRank now(0);
  now.state.set("extra", 1);
  CHECK_THROWS_AS(StepParts::needed(*old, now.state, 0, 2, CutRows::options()), StructureMismatch);
}

TEST_CASE("a part that is not there cannot be sent, one that is there needs no room") {
  TwoHosts hosts;
  const auto old = with_ends(hosts, 0);
  CHECK_THROWS_AS(StepParts::bytes(*old, {1, 0, 4096}), InvalidArgument);
  CHECK_THROWS_AS(StepParts::room(*old, {0, 0, 4096}), InvalidArgument);
  CHECK_THROWS_AS(StepParts::room(*old, {1, 0, std::uint64_t{1} << 40}), InvalidArgument);
  CHECK_THROWS_AS(StepParts::bytes(*old, {0, 0, std::uint64_t{1} << 40}), InvalidArgument);
}

TEST_CASE("a damaged block of a file is found where it is needed or sent, and another file taken") {
  TwoHosts hosts;
  const PersistedName own{"gpt", {1, 9}, 1, kBefore, {}}, held{"gpt", {1, 9}, 1, kBefore, 2};
  const auto at = hosts.job.byte_of_row(1, 3);
  const auto bytes = hosts.job.images[1].bytes();
  const auto directory = TwoHosts::disk_of(1);
  const bool another = GENERATE(false, true);
  if (another) publish_atomically(hosts.job.disk, directory / to_file_name(held), bytes);
  bytes[at] ^= std::byte{1};
  hosts.job.disk.unlink(directory / to_file_name(own));
  publish_atomically(hosts.job.disk, directory / to_file_name(own), bytes);
  const auto old = with_ends(hosts, 1);
  SECTION("it is sent") {
    CHECK(StepParts::prove(*old, {1, at + kBlock, at + 2 * kBlock}));  // a block that is sound
    CHECK_FALSE(StepParts::prove(*old, {1, at - 2 * kBlock, at + 1}));
  }
  SECTION("it is needed") {
    const CutRows::NewRank now(0);
    CHECK_FALSE(StepParts::needed(*old, now.state, 0, 2, CutRows::options()));
  }
  CHECK(StepParts::has_file(*old, 1) == another);
  CHECK(StepParts::has(*old, 1) == another);
  REQUIRE(hosts.complaints.size() == 1);
  CHECK_THAT(hosts.complaints[0], Contains("does not match its digest"));
  if (another) CHECK(StepParts::prove(*old, {1, at - 2 * kBlock, at + 1}));
}
