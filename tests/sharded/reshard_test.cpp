#include <random>

#include <meshstage/core/error/error.hpp>

#include "tests/sharded/shards.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/ranks_on_mesh.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

TEST_CASE("resharding and gathering gives the full tensor, on random shards, chunked and not") {
  std::vector<std::string> wrong;
  for (std::uint32_t seed = 0; seed < 120; ++seed) {
    std::mt19937 engine(seed);
    const int ranks = 1 + static_cast<int>(engine() % 6);
    Shape shape;
    for (auto dims = engine() % 4; dims > 0; --dims) shape.push_back(1 + engine() % 9);
    const auto from = random_shards(engine, shape, ranks);
    ShardingSpec spec;
    if (shape.empty() || engine() % 2 == 0) {
      spec = EnumerableSharding{random_shards(engine, shape, ranks)};
    } else {
      ChunkSharding chunks{static_cast<int>(engine() % shape.size()), {}};
      for (auto n = 1 + engine() % 7; n > 0; --n) {
        chunks.placements.push_back(
            {static_cast<int>(engine() % static_cast<unsigned>(ranks)), kCpu});
      }
      spec = chunks;
    }
    const int root = static_cast<int>(engine() % static_cast<unsigned>(ranks));
    const auto groups = in_process_groups(ranks);
    std::vector<std::string> problems(static_cast<std::size_t>(ranks));
    testing::run_ranks_without_error(ranks, [&](int r) {
      const auto at = static_cast<std::size_t>(r);
      const auto t = ShardedTensor::init_from_local_shards(shards_at(from, shape, r), shape,
                                                           *groups[at], soon());
      const auto u = t.reshard(spec, *groups[at], soon());
      const auto to = shards_of(spec, shape, ranks);
      if (u.metadata().shards != to) problems[at] += "metadata ";
      const auto expected = shards_at(to, shape, r);
      if (u.local_shards().size() != expected.size()) problems[at] += "count ";
      for (std::size_t i = 0; i < std::min(expected.size(), u.local_shards().size()); ++i) {
        if (!same_bits(u.local_shards()[i].tensor, expected[i].tensor)) problems[at] += "shard ";
      }
      const auto whole = u.gather(*groups[at], root, soon());
      if (whole.defined() != (r == root)) problems[at] += "root ";
      if (r == root && !same_bits(whole, counted(shape))) problems[at] += "whole ";
    });
    for (const auto& p : problems) {
      if (!p.empty()) wrong.push_back("seed " + std::to_string(seed) + ": " + p);
    }
  }
  CHECK(wrong == std::vector<std::string>{});
}

TEST_CASE("a wrong spec is refused by all ranks before anything is sent, the tensor stays") {
  const auto groups = in_process_groups(2);
  std::vector<char> whole(2);
  const auto errors = testing::run_ranks(2, [&](int r) {
    const auto at = static_cast<std::size_t>(r);
    const std::vector<ShardMetadata> from{{{0}, {3}, {0, kCpu}}, {{3}, {4}, {1, kCpu}}};
    const auto t =
        ShardedTensor::init_from_local_shards(shards_at(from, {7}, r), {7}, *groups[at], soon());
    std::string error;
    try {
      (void)t.reshard(EnumerableSharding{{{{0}, {3}, {0, kCpu}}, {{4}, {3}, {1, kCpu}}}},
                      *groups[at], soon());
    } catch (const InvalidArgument& e) {
      error = e.what();
    }
    const auto all = t.gather(*groups[at], 0, soon());
    whole[at] = r == 1 || same_bits(all, counted({7}));
    throw std::runtime_error(error);
  });
  CHECK_THAT(errors[0], Contains("shard 0") && Contains("gap") && Contains("[3]"));
  CHECK(errors[0] == errors[1]);
  CHECK(whole == std::vector<char>{1, 1});
}

TEST_CASE("only the owner of shards moves them, within a group that has all ranks") {
  const auto groups = in_process_groups(2);
  const ShardedTensorMetadata metadata{{2}, DType::kF32, {{{0}, {2}, {0, kCpu}}}};
  const auto t = ShardedTensor::from_metadata({Tensor::arange<float>(2)}, metadata, 0);
  CHECK_THROWS_AS(t.gather(*groups[1], 0, soon()), InvalidArgument);
  CHECK_THROWS_AS(t.held_by(1).gather(*groups[1], 0, soon()), InvalidArgument);
  CHECK_THROWS_AS(t.gather(*groups[0], 2, soon()), InvalidArgument);
  auto far = metadata;
  far.shards.push_back({{2}, {0}, {5, kCpu}});
  const auto u = ShardedTensor::from_metadata({Tensor::arange<float>(2)}, far, 0);
  CHECK_THROWS_WITH(u.gather(*groups[0], 0, soon()), Contains("rank 5"));
}
