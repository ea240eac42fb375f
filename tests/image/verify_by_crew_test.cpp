// verify_image() and verify_replica() by several threads.
#include <meshstage/core/image/blocks.hpp>

#include <atomic>
#include <barrier>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;

namespace {

constexpr std::uint64_t kBlock = 4096;

/// The first and the last byte of the image, of its manifest, of each block and of its trailer,
/// and the bytes beside them. `left_out`: bytes of the image that `bytes` lacks.
std::set<std::size_t> borders(const test::TestImage& image, std::size_t left_out) {
  const auto& layout = image.plan.layout();
  const auto end = image.bytes().size() - left_out;
  std::set<std::size_t> all{0, 1, end - 1};
  const auto add = [&](std::size_t at) {
    for (const auto near : {at - 1, at, at + 1}) {
      if (near < end) all.insert(near);
    }
  };
  for (auto at = layout.data_begin; at < layout.trailer_begin - left_out; at += kBlock) add(at);
  add(layout.trailer_begin - left_out);
  return all;
}

using Verify = ImageInfo (*)(std::span<const std::byte>, const BytesRead&, Crew*);

/// Flips one bit at each border and checks that 1, 2 and 5 threads find what one thread finds.
void check_flips(std::span<std::byte> bytes, const std::set<std::size_t>& places,
                 const ImageInfo& info, Verify verify) {
  for (const unsigned hands : {1U, 2U, 5U}) {
    Crew crew("test", hands);
    CHECK(verify(bytes, {}, &crew) == info);
    for (const std::size_t at : places) {
      const std::byte bit{static_cast<unsigned char>(1U << at % 8)};
      bytes[at] ^= bit;
      const auto alone = test::refusal([&] { (void)verify(bytes, {}, nullptr); });
      const auto together = test::refusal([&] { (void)verify(bytes, {}, &crew); });
      bytes[at] ^= bit;
      INFO("byte " << at << ", " << hands << " threads");
      CHECK(alone != "nothing");
      CHECK(together == alone);
    }
  }
}

Dict state_of_bytes(const std::vector<std::int64_t>& sizes) {
  Dict state;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    state.set("t" + std::to_string(i),
              test::bytes_tensor(sizes[i], static_cast<std::uint8_t>(i + 1)));
  }
  return state;
}

}  // namespace

TEST_CASE("a bit that flips at any border of an image is found by any number of threads") {
  const std::vector<std::vector<std::int64_t>> states{
      {}, {1}, {4095}, {4096}, {4097}, {8192, 12288}, {1, 4097, 12289, 7}, {40001, 4096, 20000}};
  for (const auto& sizes : states) {
    INFO(sizes.size() << " tensors");
    const auto image = test::make_image(state_of_bytes(sizes), kBlock);
    check_flips(image.memory.bytes(), borders(image, 0), image.info, verify_image);
  }
}

TEST_CASE("a bit that flips at any border of a replica is found by any number of threads") {
  const auto image = test::borrowing_image();
  REQUIRE(image.info.borrowed_bytes > 0);
  const auto replica = test::replica_of(image);
  check_flips(replica.bytes(), borders(image, image.info.borrowed_bytes), image.info,
              verify_replica);
}

TEST_CASE("of several wrong blocks the first is named, whichever thread finds its block first") {
  // Large blocks, so that threads prove them at the same time and end in any order.
  constexpr std::uint64_t kLarge = std::uint64_t{1} << 20U;
  const auto image = test::make_image(state_of_bytes({5 * kLarge + 1}), kLarge);
  const auto begin = image.plan.layout().data_begin;
  for (const std::size_t block : {4U, 2U, 3U, 1U}) {
    image.memory.data()[begin + block * kLarge] ^= std::byte{1};
  }
  for (const unsigned hands : {1U, 2U, 5U}) {
    Crew crew("test", hands);
    for (int round = 0; round < 50; ++round) {
      REQUIRE_THAT(test::refusal([&] { (void)verify_image(image.bytes(), {}, &crew); }),
                   Contains("block 1 ("));
    }
  }
}

TEST_CASE("a crew proves blocks at the same time, and reports every byte up to the trailer") {
  const auto image = test::make_image(state_of_bytes({40000}), kBlock);
  std::barrier<> three(3);  // passes only if three blocks are proven at the same time
  std::atomic<int> calls{0};
  std::atomic<std::uint64_t> bytes{0};
  Crew crew("test", 3);
  const auto info = verify_image(
      image.bytes(),
      [&](std::uint64_t more) {
        bytes += more;
        const int call = calls++;
        if (call >= 1 && call <= 3) three.arrive_and_wait();  // the first is for the manifest
      },
      &crew);
  CHECK(info == image.info);
  CHECK(bytes == image.plan.layout().trailer_begin);
  CHECK(calls ==
        1 + static_cast<int>((image.plan.layout().digested_bytes() + kBlock - 1) / kBlock));
}

TEST_CASE("an exception of whoever follows the reading ends it, and comes out once") {
  const auto image = test::make_image(state_of_bytes({400000}), kBlock);
  for (const unsigned hands : {1U, 2U, 5U}) {
    Crew crew("test", hands);
    std::atomic<int> calls{0};
    CHECK_THROWS_WITH(verify_image(
                          image.bytes(),
                          [&](std::uint64_t) {
                            if (++calls > 4) throw std::runtime_error("no more");
                          },
                          &crew),
                      "no more");
    CHECK(calls <= 4 + static_cast<int>(hands));                  // each thread throws once at most
    CHECK(verify_image(image.bytes(), {}, &crew) == image.info);  // the crew is as good as before
  }
}
