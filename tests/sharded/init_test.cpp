#include <meshstage/core/error/error.hpp>

#include "tests/sharded/shards.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/ranks_on_mesh.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

// Rank 0 has two shards, rank 1 one, rank 2 two, rank 3 none.
const Shape kWhole{8, 4};
const std::vector<ShardMetadata> kShards{{{0, 0}, {2, 4}, {0, kCpu}},
                                         {{2, 0}, {2, 2}, {0, kCpu}},
                                         {{2, 2}, {2, 2}, {1, {DeviceType::kCuda, 0}}},
                                         {{4, 0}, {3, 4}, {2, kCpu}},
                                         {{7, 0}, {1, 4}, {2, kCpu}}};

struct Given {
  std::vector<Shard> shards;
  Shape shape = kWhole;
};

/// What the ranks throw after one of them made a mistake: the same at all, or the test fails.
/// Only the links of the control tree are there.
std::string error_at_all(int rank, const std::function<void(Given&)>& mistake) {
  const auto groups = in_process_groups(4, testing::Linked::kTree);
  std::vector<int> named(4, -1);
  const auto errors = testing::run_ranks(4, [&](int r) {
    Given given{shards_at(kShards, kWhole, r)};
    if (r == rank) mistake(given);
    const auto at = static_cast<std::size_t>(r);
    try {
      (void)ShardedTensor::init_from_local_shards(given.shards, given.shape, *groups[at], soon());
    } catch (const InvalidArgument& e) {
      named[at] = e.rank().value_or(-1);
      throw;
    }
  });
  CHECK(errors == std::vector<std::string>(4, errors[0]));
  CHECK(named == std::vector<int>(4, rank));
  return errors[0];
}

}  // namespace

TEST_CASE("a ShardedTensor is made of several shards a rank, one, and none") {
  const auto groups = in_process_groups(4, testing::Linked::kTree);
  std::vector<ShardedTensorMetadata> metadata(4);
  std::vector<std::size_t> local(4);
  std::vector<std::string> texts(4);
  testing::run_ranks_without_error(4, [&](int r) {
    const auto at = static_cast<std::size_t>(r);
    const auto shards = shards_at(kShards, kWhole, r);
    const auto t = ShardedTensor::init_from_local_shards(shards, kWhole, *groups[at], soon());
    metadata[at] = t.metadata();
    local[at] = t.local_shards().size();
    texts[at] = t.to_string();
    for (std::size_t i = 0; i < shards.size(); ++i) {
      if (t.local_shards()[i].tensor.identity() != shards[i].tensor.identity()) local[at] = 99;
      if (!(t.local_shards()[i].metadata == shards[i].metadata)) local[at] = 99;
    }
    if (t.owner() != r || t.holder() != r) local[at] = 98;
  });
  CHECK(local == std::vector<std::size_t>{2, 1, 2, 0});
  for (const auto& m : metadata) CHECK(m == ShardedTensorMetadata{kWhole, DType::kF32, kShards});
  CHECK(texts[2] == "ShardedTensor(F32[8, 4] in 5 shards; rank 2 has 2)");
}

TEST_CASE("one rank's mistake is the same error on all ranks, naming rank and shard") {
  const auto meta = [](std::size_t i, const std::function<void(ShardMetadata&)>& change) {
    return [=](Given& g) { change(g.shards[i].metadata); };
  };
  SECTION("outside the global size") {
    const auto e = error_at_all(2, meta(1, [](ShardMetadata& m) { m.offsets[0] = 8; }));
    CHECK_THAT(e, Contains("shard 1 of rank 2") && Contains("within the tensor [8, 4]"));
  }
  SECTION("overlap: both are named, the later one is to blame") {
    const auto e = error_at_all(2, meta(0, [](ShardMetadata& m) { m.offsets[0] = 3; }));
    CHECK_THAT(e, Contains("shard 0 of rank 2") && Contains("overlaps") && Contains("of rank"));
  }
  SECTION("gap: the element, and the shard before it") {
    const auto e = error_at_all(2, [](Given& g) { g.shards.pop_back(); });
    CHECK_THAT(e, Contains("gap") && Contains("[7, 0]") && Contains("shard 0 of rank 2"));
  }
  SECTION("sizes that are not the tensor's") {
    const auto e =
        error_at_all(0, [](Given& g) { g.shards[1].tensor = Tensor::zeros({2, 3}, DType::kF32); });
    CHECK_THAT(e, Contains("shard 1 of rank 0") && Contains("[2, 3]"));
  }
  SECTION("another dtype") {
    const auto e =
        error_at_all(1, [](Given& g) { g.shards[0].tensor = Tensor::zeros({2, 2}, DType::kF64); });
    CHECK_THAT(e, Contains("shard 0 of rank 1") && Contains("F64") && Contains("F32"));
  }
  SECTION("another dtype, of the first rank: most are right") {
    const auto e = error_at_all(0, [](Given& g) {
      for (auto& s : g.shards) s.tensor = Tensor::zeros(s.metadata.sizes, DType::kF64);
    });
    CHECK_THAT(e, Contains("shard 0 of rank 0") && Contains("is of F64, but shard 0 of rank 1"));
  }
  SECTION("overlaps of the first rank's shards with others'") {
    CHECK_THAT(error_at_all(0, meta(0, [](ShardMetadata& m) { m.offsets[0] = 1; })),
               Contains("shard 0 of rank 0") && Contains("overlaps"));
  }
  SECTION("a placement on another rank") {
    const auto e = error_at_all(1, meta(0, [](ShardMetadata& m) { m.placement.rank = 2; }));
    CHECK_THAT(e, Contains("shard 0 of rank 1") && Contains("rank:2/cuda:0"));
  }
  SECTION("an undefined tensor") {
    const auto e = error_at_all(2, [](Given& g) { g.shards[1].tensor = Tensor(); });
    CHECK_THAT(e, Contains("shard 1 of rank 2") && Contains("undefined"));
  }
  SECTION("another number of dimensions") {
    const auto e = error_at_all(0, meta(0, [](ShardMetadata& m) { m.offsets = {0}; }));
    CHECK_THAT(e, Contains("shard 0 of rank 0") && Contains("dimensions"));
  }
  SECTION("another global size, also of a rank without shards") {
    CHECK_THAT(error_at_all(3, [](Given& g) { g.shape = {8, 5}; }),
               Contains("rank 3") && Contains("[8, 5]") && Contains("[8, 4]"));
    CHECK_THAT(error_at_all(0, [](Given& g) { g.shape = {8}; }), Contains("rank 0"));
  }
}

TEST_CASE("of two shards that cannot both be right the odd one is named") {
  // Four ranks with two rows each; one of them has one row more or less, at its begin or its end.
  for (int rank = 0; rank < 4; ++rank) {
    for (const auto& [offset, size] : {std::pair(-1, 3), {0, 3}, {1, 1}, {0, 1}}) {
      std::vector<ShardMetadata> shards;
      for (int r = 0; r < 4; ++r) shards.push_back({{2 * r, 0}, {2, 4}, {r, kCpu}});
      auto& wrong = shards[static_cast<std::size_t>(rank)];
      wrong.offsets[0] += offset;
      wrong.sizes[0] = size;
      if (wrong.offsets[0] < 0 || wrong.offsets[0] + size > 8) continue;
      INFO("rank " << rank << ": " << to_string(wrong));
      try {
        (void)ShardedTensor::from_metadata({}, {kWhole, DType::kF32, shards}, 4);
        FAIL("accepted");
      } catch (const InvalidArgument& e) {
        CHECK(e.rank() == rank);
        CHECK_THAT(e.what(), Contains("shard " + std::to_string(rank)));
      }
    }
  }
}

TEST_CASE("no shards at all are an error at all ranks") {
  const auto groups = in_process_groups(2);
  const auto errors = testing::run_ranks(2, [&](int r) {
    (void)ShardedTensor::init_from_local_shards({}, {4}, *groups[static_cast<std::size_t>(r)],
                                                soon());
  });
  CHECK_THAT(errors[0], Contains("no rank has a shard"));
  CHECK(errors[0] == errors[1]);
}

TEST_CASE("from_metadata checks tensors against the metadata without communication") {
  const ShardedTensorMetadata metadata{kWhole, DType::kF32, kShards};
  const auto zeros = [](const Shape& s) { return Tensor::zeros(s, DType::kF32); };
  const auto t = ShardedTensor::from_metadata({zeros({3, 4}), zeros({1, 4})}, metadata, 2);
  CHECK(t.metadata() == metadata);
  CHECK(t.local_shards()[1].metadata == kShards[4]);
  CHECK_THROWS_AS(ShardedTensor::from_metadata({zeros({3, 4})}, metadata, 2), InvalidArgument);
  CHECK_THROWS_AS(ShardedTensor::from_metadata({zeros({1, 4}), zeros({3, 4})}, metadata, 2),
                  InvalidArgument);
  CHECK_THROWS_AS(ShardedTensor::from_metadata({zeros({2, 2})}, metadata, 3), InvalidArgument);
  CHECK(ShardedTensor::from_metadata({}, metadata, 3).local_shards().empty());
}
