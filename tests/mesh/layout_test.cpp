#include <meshstage/mesh/layout.hpp>

#include <algorithm>
#include <random>
#include <set>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/replicated.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {
using Shape = std::vector<std::int64_t>;

std::string why_not(const std::string& text) {
  try {
    (void)parse_placements(text);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "no error";
}
}  // namespace

TEST_CASE("shards of random layouts cover the tensor exactly once") {
  std::mt19937 random(11);
  const auto below = [&](int n) {
    return static_cast<std::int64_t>(random() % static_cast<unsigned>(n));
  };
  for (int round = 0; round < 500; ++round) {
    Shape mesh;
    Placements placements;
    std::int64_t copies = 1;
    const Shape tensor{below(8), 1 + below(6)};
    for (std::int64_t d = 0, n = 1 + below(3); d < n; ++d) {
      mesh.push_back(1 + below(4));
      placements.push_back(below(3) == 0 ? Placement::replicate()
                                         : Placement::shard(static_cast<int>(below(4)) - 2));
      if (placements.back().is_replicate()) copies *= mesh.back();
    }
    const Layout layout(mesh, tensor, placements);
    const auto all = DeviceMesh::from_shape(mesh);
    std::vector<int> seen(static_cast<std::size_t>(tensor[0] * tensor[1]), 0);
    for (int r = 0; r < all.size(); ++r) {
      const LocalShard s = layout.at(*all.coordinate(r));
      for (std::int64_t i = 0; i < s.shape[0]; ++i) {
        for (std::int64_t j = 0; j < s.shape[1]; ++j) {
          ++seen[static_cast<std::size_t>((s.offset[0] + i) * tensor[1] + s.offset[1] + j)];
        }
      }
    }
    INFO(to_string(placements));
    for (const int s : seen) REQUIRE(s == copies);
    // What is said of all blocks at once is what looking at each finds.
    std::set<std::int64_t> numels;
    std::vector<std::set<std::int64_t>> sizes(2);
    for (const int r : all.ranks()) {
      const LocalShard s = layout.at(*all.coordinate(r));
      numels.insert(s.numel());
      for (std::size_t t = 0; t < 2; ++t) sizes[t].insert(s.shape[t]);
    }
    for (std::size_t t = 0; t < 2; ++t) {
      REQUIRE(layout.part_sizes(t) == Shape(sizes[t].begin(), sizes[t].end()));
    }
    REQUIRE(layout.is_even() == (numels.size() == 1));
    REQUIRE(layout.all_have_elements() == !numels.contains(0));
  }
}

TEST_CASE("placements are read in PyTorch's two forms and printed in the short one") {
  CHECK(to_string(parse_placements("S(0),R")) == "S(0),R");
  CHECK(to_string(parse_placements(" Shard( -1 ) , Replicate, Partial(avg),P")) ==
        "S(-1),R,P(avg),P(sum)");
  for (const auto op : {"sum", "avg", "product", "min", "max"}) {
    const std::string text = std::string("P(") + op + ")";
    CHECK(parse_placement(text).to_string() == text);
  }
  CHECK(normalized(parse_placements("S(-1),S(0)"), 3) ==
        Placements{Placement::shard(2), Placement::shard(0)});
}

TEST_CASE("what is no placement is refused with the valid forms") {
  for (const auto text : {"", ",", "S", "S()", "S(x)", "S(0", "S(0))", "S(99999999999)", "T(0)",
                          "R,", "P(median)", "R(0)", "(0)", "S(0)R", "S(+1)", "S(0.5)", ")", "("}) {
    INFO(text);
    CHECK_THAT(why_not(text), contains_text("write R, S(DIM) or P(sum|avg|product|min|max)"));
  }
}

TEST_CASE("placements that do not fit mesh or tensor are refused") {
  const auto why = [](Shape mesh, Shape tensor, const std::string& placements) -> std::string {
    try {
      (void)Layout(mesh, tensor, parse_placements(placements));
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "no error";
  };
  CHECK_THAT(why({2, 4}, {8}, "R"), contains_text("one for each of its 2 dimensions, not 1"));
  CHECK_THAT(why({2}, {8}, "S(1)"), contains_text("use -1..0"));
  CHECK_THAT(why({2}, {}, "S(0)"), contains_text("use R or P"));
  CHECK_THAT(why({2}, {-8}, "R"), contains_text("negative"));
  CHECK_THAT(why({2}, {INT64_MAX, 2}, "R"), contains_text("2^63-1"));
  CHECK_THAT(why({2}, {INT64_MAX, 2, 0}, "R"), contains_text("2^63-1"));
  CHECK_THAT(why({0}, {8}, "R"), contains_text("at least 1"));
  CHECK_THROWS_AS(Layout(Shape{2}, Shape{8}, Placements(1)).at(Shape{2}), InvalidArgument);
}

TEST_CASE("the largest sizes do not overflow") {
  const Layout layout(Shape{3, 1 << 20}, Shape{INT64_MAX}, parse_placements("S(0),S(0)"));
  std::int64_t last_end = 0;
  const LocalShard first = layout.at(Shape{0, 0});
  const LocalShard last = layout.at(Shape{2, (1 << 20) - 1});
  last_end = last.offset[0] + last.shape[0];
  CHECK(first.offset[0] == 0);
  CHECK(last_end == INT64_MAX);
}

TEST_CASE("the ranks with the same shard are those along the replicated dimensions") {
  const auto mesh = DeviceMesh::from_shape({2, 3, 2}, {"dp", "cp", "tp"});
  CHECK(same_shard_ranks(mesh, parse_placements("R,S(0),R"), 3) == std::vector<int>{2, 3, 8, 9});
  CHECK(same_shard_ranks(mesh, parse_placements("S(0),S(0),S(0)"), 3) == std::vector<int>{3});
  CHECK(same_shard_ranks(mesh, parse_placements("P,R,S(0)"), 3) == std::vector<int>{1, 3, 5});
}

TEST_CASE("two ranks have the same shard if they differ along replicated dimensions alone") {
  const auto mesh = DeviceMesh::from_ranks({3, 7, 1, 5, 6, 4, 2, 0}, {2, 2, 2});
  for (const std::string text : {"R,S(0),R", "S(0),S(0),S(0)", "P,R,S(0)", "R,R,R", "R,P(max),R"}) {
    const auto placements = parse_placements(text);
    for (const int a : mesh.ranks()) {
      const auto same = same_shard_ranks(mesh, placements, a);
      for (const int b : mesh.ranks()) {
        INFO(text << ": " << a << " and " << b);
        CHECK(same_shard(mesh, placements, a, b) ==
              (std::find(same.begin(), same.end(), b) != same.end()));
      }
    }
    CHECK_FALSE(same_shard(mesh, placements, 0, 8));
    CHECK_FALSE(same_shard(mesh, placements, -1, 0));
  }
  CHECK_THROWS_AS(same_shard(mesh, parse_placements("R"), 0, 1), InvalidArgument);
}

TEST_CASE("a tensor is described in one word of the command line") {
  const TensorSpec t = parse_tensor_spec("model.w=bf16[1024,512]:S(0),R");
  CHECK(t.name == "model.w");
  CHECK(t.shape == Shape{1024, 512});
  CHECK(checked_bytes(t) == 1024 * 512 * 2);
  CHECK(to_string(t.placements) == "S(0),R");
  CHECK(checked_bytes(parse_tensor_spec("step=i64[]:R")) == 8);
  CHECK(checked_bytes(parse_tensor_spec("none=f32[0,5]:R")) == 0);
  for (const auto text :
       {"", "w", "w=f32", "=f32[1]:R", "w=f32[1]", "w=f32[x]:R", "w=f32[1,]:R", "w=f33[1]:R",
        "w=f32[-1]:R", "w=f32[9223372036854775807]:R", "w=]:[", "w=f32[1]:"}) {
    INFO(text);
    CHECK_THROWS_AS(parse_tensor_spec(text), InvalidArgument);
  }
}
