#include <meshstage/core/error/error.hpp>
#include <meshstage/sharded/shard.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

TEST_CASE("a shard's placement reads back as it is written") {
  const std::vector<std::pair<std::string, ShardPlacement>> cases{
      {"rank:1/cuda:0", {1, {DeviceType::kCuda, 0}}},
      {"rank:0/cpu", {0, kCpu}},
      {"rank:131071/cuda:7", {131071, {DeviceType::kCuda, 7}}}};
  for (const auto& [text, placement] : cases) {
    CHECK(to_string(placement) == text);
    CHECK(parse_shard_placement(text) == placement);
  }
}

TEST_CASE("what is no placement is refused with the valid forms") {
  for (const std::string text :
       {"", "rank:1", "rank:1/", "/cpu", "rank:/cpu", "rank:-1/cpu", "rank:+1/cpu", "rank:1/gpu:0",
        "rank:1/cuda", "rank:1/cuda:", "rank:1/cuda:-1", "rank:1/cuda:40000", "rank:1/cuda:0 ",
        " rank:1/cpu", "rank:1x/cpu", "rank:2147483648/cpu", "RANK:1/cpu", "rank:1/cpu/cpu"}) {
    INFO(text);
    CHECK_THROWS_WITH(parse_shard_placement(text), Catch::Matchers::Contains("rank:1/cuda:0"));
  }
}

TEST_CASE("metadata prints as sizes, offsets and placement") {
  CHECK(to_string(ShardMetadata{{4, 0}, {2, 3}, {1, {DeviceType::kCuda, 0}}}) ==
        "[2, 3] at [4, 0] on rank:1/cuda:0");
}
