// The checks of cover, against counting: every element of a small tensor is had once.
#include <random>

#include <meshstage/core/error/error.hpp>
#include <meshstage/sharded/sharding_spec.hpp>

#include "tests/sharded/shards.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

std::string error_of(const std::vector<ShardMetadata>& shards, const Shape& shape) {
  try {
    (void)shards_of(EnumerableSharding{shards}, shape, 4);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

/// How often each element is had.
std::vector<int> counts(const std::vector<ShardMetadata>& shards, const Shape& shape) {
  std::vector<int> n(static_cast<std::size_t>(element_count(shape)));
  const auto strides = contiguous_strides(shape);
  for (std::size_t i = 0; i < n.size(); ++i) {
    for (const auto& s : shards) {
      bool has = true;
      for (std::size_t d = 0; d < shape.size(); ++d) {
        const auto at = static_cast<std::int64_t>(i) / strides[d] % shape[d];
        has = has && s.offsets[d] <= at && at < s.offsets[d] + s.sizes[d];
      }
      n[i] += has ? 1 : 0;
    }
  }
  return n;
}

Shape place_of(std::size_t i, const Shape& shape) {
  const auto strides = contiguous_strides(shape);
  Shape at;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    at.push_back(static_cast<std::int64_t>(i) / strides[d] % shape[d]);
  }
  return at;
}

}  // namespace

TEST_CASE("random shards: gaps and overlaps are found exactly where counting finds them") {
  std::vector<std::string> wrong;
  int gaps = 0;
  int overlaps = 0;
  for (std::uint32_t seed = 0; seed < 600; ++seed) {
    std::mt19937 engine(seed);
    Shape shape;
    for (auto dims = 1 + engine() % 3; dims > 0; --dims) shape.push_back(1 + engine() % 6);
    auto shards = random_shards(engine, shape, 4);
    // Then something is moved, grown, shrunk or dropped.
    auto& s = shards[engine() % shards.size()];
    const std::size_t d = engine() % shape.size();
    switch (engine() % 5) {
      case 0:
        if (s.offsets[d] > 0) --s.offsets[d];
        break;
      case 1:
        if (s.offsets[d] + s.sizes[d] < shape[d]) ++s.sizes[d];
        break;
      case 2:
        --s.sizes[d];
        break;
      case 3:
        s = shards.back();
        shards.pop_back();
        break;
      default:
        break;
    }
    const auto n = counts(shards, shape);
    const auto error = error_of(shards, shape);
    const auto hole = std::find(n.begin(), n.end(), 0);
    if (std::any_of(n.begin(), n.end(), [](int c) { return c > 1; })) {
      ++overlaps;
      if (error.find("overlaps shard") == std::string::npos) wrong.push_back(error + " overlap");
    } else if (hole != n.end()) {
      ++gaps;
      const auto at = to_string(place_of(static_cast<std::size_t>(hole - n.begin()), shape));
      const bool named = shards.empty() || error.find("the element " + at) != std::string::npos;
      if (error.empty() || !named) wrong.push_back(error + " gap " + at);
    } else if (!error.empty()) {
      wrong.push_back(error);
    }
  }
  CHECK(wrong == std::vector<std::string>{});
  CHECK(gaps > 50);
  CHECK(overlaps > 50);
}

TEST_CASE("shards outside the tensor, and numbers that would wrap, are refused") {
  const std::int64_t huge = std::int64_t{1} << 62;
  const Shape shape{4, 4};
  const auto with = [](Shape offsets, Shape sizes) {
    return std::vector<ShardMetadata>{{std::move(offsets), std::move(sizes), {}}};
  };
  for (const auto& shards :
       {with({0, 1}, {4, 4}), with({-1, 0}, {4, 4}), with({0, 0}, {4, -4}), with({0, 0}, {5, 4}),
        with({huge, huge}, {huge, huge}), with({0, 5}, {4, 0}), with({0}, {4}),
        with({0, 0, 0}, {4, 4, 1}), with({0, 0}, {4}), with({2, 0}, {huge - 1 + huge, 4})}) {
    INFO(to_string(shards[0]));
    CHECK_THAT(error_of(shards, shape),
               Contains("shard 0") &&
                   (Contains("does not lie within") || Contains("another number of dimensions")));
  }
  CHECK_THAT(error_of({{{0, 0}, {4, 4}, {4, kCpu}}}, shape), Contains("rank"));
  CHECK_THROWS_AS(shards_of(EnumerableSharding{}, {huge, 4}, 4), InvalidArgument);
  CHECK_THROWS_AS(shards_of(EnumerableSharding{}, {-1}, 4), InvalidArgument);
}

TEST_CASE("tensors without dimensions or without elements have their shards too") {
  CHECK(error_of({{{}, {}, {}}}, {}).empty());
  CHECK_THAT(error_of({{{}, {}, {}}, {{}, {}, {}}}, {}), Contains("overlaps"));
  CHECK_THAT(error_of({}, {}), Contains("no rank has a shard"));
  CHECK(error_of({{{0, 0}, {0, 4}, {}}}, {0, 4}).empty());
  CHECK(error_of({{{0, 0}, {0, 4}, {}}, {{0, 2}, {0, 2}, {}}}, {0, 4}).empty());
  // An empty shard takes no room.
  CHECK(error_of({{{0}, {4}, {}}, {{2}, {0}, {1, kCpu}}}, {4}).empty());
}

TEST_CASE("chunks: by ceil, the last smaller, none without elements") {
  const std::vector<ShardPlacement> on{{0, kCpu}, {1, kCpu}, {0, kCpu}, {3, kCpu}};
  const auto sizes = [&](std::int64_t size, int dim = 0) {
    std::vector<std::int64_t> all;
    for (const auto& s : shards_of(ChunkSharding{dim, on}, {size, 2}, 4)) all.push_back(s.sizes[0]);
    return all;
  };
  using Sizes = std::vector<std::int64_t>;
  CHECK(sizes(8) == Sizes{2, 2, 2, 2});
  CHECK(sizes(10) == Sizes{3, 3, 3, 1});
  CHECK(sizes(9) == Sizes{3, 3, 3});
  CHECK(sizes(2) == Sizes{1, 1});
  CHECK(sizes(0) == Sizes{0});
  CHECK(sizes(10, -2) == Sizes{3, 3, 3, 1});
  const auto columns = shards_of(ChunkSharding{-1, on}, {3, 7}, 4);
  CHECK(columns[3] == ShardMetadata{{0, 6}, {3, 1}, {3, kCpu}});
  CHECK_THROWS_AS(shards_of(ChunkSharding{2, on}, {3, 7}, 4), InvalidArgument);
  CHECK_THROWS_AS(shards_of(ChunkSharding{-3, on}, {3, 7}, 4), InvalidArgument);
  CHECK_THROWS_AS(shards_of(ChunkSharding{0, {}}, {3, 7}, 4), InvalidArgument);
  CHECK_THROWS_AS(shards_of(ChunkSharding{0, on}, {8, 7}, 3), InvalidArgument);
}
