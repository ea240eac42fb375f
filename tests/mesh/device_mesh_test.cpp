#include <meshstage/mesh/device_mesh.hpp>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <sstream>

#include <meshstage/core/error/error.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

using Shape = std::vector<std::int64_t>;
using Names = std::vector<std::string>;

std::string why(const std::function<void()>& f) {
  try {
    f();
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("a mesh of a million ranks is sizes and strides, whatever way it was made") {
  const auto mesh = DeviceMesh::from_shape({64, 128, 128}, {"pp", "dp", "tp"});
  CHECK(mesh.size() == 1 << 20);
  CHECK(mesh.is_strided());
  CHECK(mesh.coordinate((3 * 128 + 5) * 128 + 7) == Shape{3, 5, 7});
  CHECK(mesh.slice("dp", 7).is_strided());
  CHECK(mesh.slice("dp", 7).rank_at(2) == 2 * 128 + 7);
  std::vector<int> all(1 << 20);
  std::iota(all.begin(), all.end(), 0);
  const auto listed = DeviceMesh::from_ranks(all, {64, 128, 128}, {"pp", "dp", "tp"});
  CHECK(listed.is_strided());
  CHECK(listed == mesh);
  CHECK(listed.hash() == mesh.hash());
}

TEST_CASE("an explicit order keeps its ranks, and finds them") {
  const auto mesh = DeviceMesh::from_ranks({3, 7, 1, 5, 6, 4, 2, 0}, {2, 4}, {"a", "b"});
  CHECK_FALSE(mesh.is_strided());
  CHECK(mesh.coordinate(5) == Shape{0, 3});
  CHECK_FALSE(mesh.contains(8));
  CHECK_FALSE(mesh.contains(-1));
  CHECK_FALSE(mesh.coordinate(100).has_value());
  // Ranks far apart from each other are found as well.
  const auto far = DeviceMesh::from_ranks({2'000'000'000, 5, 1'000'000, 7}, {4});
  CHECK(far.index_of(1'000'000) == 2);
  CHECK(far.index_of(6) == std::nullopt);
  CHECK(far.index_of(2'000'000'000) == 0);
}

TEST_CASE("a column-major order is strided too") {
  const auto mesh = DeviceMesh::from_ranks({0, 2, 4, 1, 3, 5}, {2, 3}, {"a", "b"});
  CHECK(mesh.is_strided());
  CHECK(mesh.ranks() == std::vector<int>{0, 2, 4, 1, 3, 5});
  CHECK(mesh.coordinate(3) == Shape{1, 1});
  const auto regular = DeviceMesh::from_shape({3, 2}, {"b", "a"});
  CHECK(regular.slice(Names{"a", "b"}, 0) == mesh);  // a slice may change the order of dimensions
}

TEST_CASE("slices, flatten and unflatten agree with the ranks written out") {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    const std::size_t ndim = 1 + random() % 4;
    Shape shape;
    Names names;
    std::int64_t n = 1;
    for (std::size_t d = 0; d < ndim; ++d) {
      shape.push_back(1 + static_cast<std::int64_t>(random() % 4));
      names.push_back(std::string(1, static_cast<char>('a' + d)));
      n *= shape.back();
    }
    std::vector<int> ranks(static_cast<std::size_t>(n));
    std::iota(ranks.begin(), ranks.end(), static_cast<int>(random() % 3));
    const bool shuffled = random() % 2 == 0;
    if (shuffled) std::shuffle(ranks.begin(), ranks.end(), random);
    const auto mesh = DeviceMesh::from_ranks(ranks, shape, names);
    INFO(mesh);
    REQUIRE(mesh.ranks() == ranks);
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      REQUIRE(mesh.index_of(ranks[i]) == static_cast<std::int64_t>(i));
      REQUIRE(mesh.rank_at(*mesh.coordinate(ranks[i])) == ranks[i]);
    }
    const int rank = ranks[random() % ranks.size()];
    Names some;
    for (const auto& name : names) {
      if (random() % 2 == 0) some.push_back(name);
    }
    if (some.empty()) some.push_back(names[0]);
    const DeviceMesh slice = mesh.slice(some, rank);
    std::set<int> expected;
    for (const int r : ranks) {
      bool same = true;
      for (const auto& name : names) {
        if (std::find(some.begin(), some.end(), name) == some.end()) {
          same = same && mesh.local_rank(r, name) == mesh.local_rank(rank, name);
        }
      }
      if (same) expected.insert(r);
    }
    const auto got = slice.ranks();
    CHECK(std::set<int>(got.begin(), got.end()) == expected);
    for (const int r : got) {
      for (const auto& name : some) CHECK(slice.local_rank(r, name) == mesh.local_rank(r, name));
    }
    const auto slices = mesh.slices(some);
    CHECK(std::count(slices.begin(), slices.end(), slice) == 1);
    CHECK(static_cast<std::int64_t>(slices.size()) * slice.size() == mesh.size());
    // The same ranks by other ways: equal and equally hashed.
    const auto flat = mesh.flatten("all");
    CHECK(flat == DeviceMesh::from_ranks(ranks, {n}, {"all"}));
    CHECK(flat.unflatten("all", shape, names) == mesh);
    CHECK(flat.unflatten("all", shape, names).hash() == mesh.hash());
    const std::size_t from = random() % ndim;
    const std::size_t to = from + 1 + random() % (ndim - from);
    const Names merged(names.begin() + static_cast<std::ptrdiff_t>(from),
                       names.begin() + static_cast<std::ptrdiff_t>(to));
    CHECK(mesh.flatten(merged, "m").ranks() == ranks);
    const auto part = slice.flatten("f");
    CHECK(part == DeviceMesh::from_ranks(got, {slice.size()}, {"f"}));
    CHECK(part.hash() == DeviceMesh::from_ranks(got, {slice.size()}, {"f"}).hash());
  }
}

TEST_CASE("a mesh is made of its groups again") {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    std::vector<int> ranks(12);
    std::iota(ranks.begin(), ranks.end(), 0);
    std::shuffle(ranks.begin(), ranks.end(), random);
    const auto mesh = DeviceMesh::from_ranks(ranks, {2, 3, 2}, {"a", "b", "c"});
    std::vector<MeshDimGroups> dims;
    for (const auto& name : mesh.names()) {
      dims.push_back(mesh.groups(name));
      std::shuffle(dims.back().groups.begin(), dims.back().groups.end(), random);
    }
    CHECK(DeviceMesh::from_groups(dims) == mesh);
  }
  const std::vector<MeshDimGroups> one{{"dp", {{4, 2, 9}}}};
  CHECK(DeviceMesh::from_groups(one) == DeviceMesh::from_ranks({4, 2, 9}, {3}, {"dp"}));
}

TEST_CASE("groups that form no mesh are refused") {
  using Dims = std::vector<MeshDimGroups>;
  const auto fail = [](Dims dims) { return why([&] { (void)DeviceMesh::from_groups(dims); }); };
  CHECK_THAT(fail({{"a", {{0, 1}, {2, 3}}}, {"b", {{0, 3}, {2, 1}}}}),
             contains_text("do not form a mesh"));
  CHECK_THAT(fail({{"a", {{0, 1}, {2}}}}), contains_text("same size"));
  CHECK_THAT(fail({{"a", {{0, 1}, {1, 2}}}}), contains_text("rank 1 is twice"));
  CHECK_THAT(fail({{"a", {{0, 1}, {2, 3}}}, {"b", {{0, 2}, {1, 4}}}}), contains_text("rank 4"));
  CHECK_THAT(fail({{"a", {{0, 1}, {2, 3}}}, {"b", {{0, 2}}}}), contains_text("no group"));
  CHECK_THAT(fail({{"a", {{0, 1}, {2, 3}}}}), contains_text("4 ranks"));
  CHECK_THAT(fail({{"a", {}}}), contains_text("no groups"));
}

TEST_CASE("what is no mesh is refused with a reason") {
  const auto shape = [](Shape s, Names n = {}) {
    return why([&] { (void)DeviceMesh::from_shape(s, n); });
  };
  CHECK_THAT(shape({}), contains_text("at least one dimension"));
  CHECK_THAT(shape({2, 0}), contains_text("size 0"));
  CHECK_THAT(shape({2, -4}), contains_text("size -4"));
  CHECK_THAT(shape({1 << 20, 1 << 20}), contains_text("more ranks"));
  CHECK_THAT(shape({INT64_MAX, INT64_MAX}), contains_text("more ranks"));
  CHECK_THAT(shape({2, 4}, {"dp"}), contains_text("2 dimensions but 1 name"));
  CHECK_THAT(shape({2, 4}, {"dp", "dp"}), contains_text("'dp' is listed twice"));
  CHECK_THAT(shape({2}, {""}), contains_text("''"));
  CHECK_THAT(shape({2}, {"d p"}), contains_text("'d p'"));
  CHECK_THAT(why([] { (void)DeviceMesh::from_shape({2}, {}, INT32_MAX); }),
             contains_text("must lie in"));
  const auto ranks = [](std::vector<int> r, Shape s) {
    return why([&] { (void)DeviceMesh::from_ranks(r, s); });
  };
  CHECK_THAT(ranks({0, 1, 2}, {2, 2}), contains_text("holds 4 ranks but 3"));
  CHECK_THAT(ranks({0, 1, 1, 2}, {2, 2}), contains_text("rank 1 is listed twice"));
  CHECK_THAT(ranks({0, 2'000'000'000, 1, 1}, {2, 2}), contains_text("rank 1 is listed twice"));
  CHECK_THAT(ranks({0, 0}, {2}), contains_text("rank 0 is listed twice"));
  CHECK_THAT(ranks({0, -1}, {2}), contains_text("rank -1"));
  const auto mesh = DeviceMesh::from_shape({2, 4}, {"dp", "tp"});
  CHECK_THAT(why([&] { (void)mesh.dim("x"); }), contains_text("'x': it has dp, tp"));
  CHECK_THAT(why([&] { (void)mesh.slice("dp", 8); }), contains_text("rank 8"));
  CHECK_THAT(why([&] { (void)mesh.slice(Names{"dp", "dp"}, 0); }), contains_text("twice"));
  CHECK_THAT(why([&] { (void)mesh.slice(Names{}, 0); }), contains_text("at least one"));
  CHECK_THAT(why([&] { (void)mesh.unflatten("tp", {3, 2}, {"a", "b"}); }),
             contains_text("product"));
  CHECK_THAT(why([&] { (void)mesh.unflatten("tp", {2, 2}, {"a", "dp"}); }), contains_text("twice"));
  CHECK_THAT(why([&] { (void)mesh.flatten(Names{"tp", "dp"}); }), contains_text("not neighbours"));
  CHECK_THAT(why([&] { (void)mesh.rank_at(8); }), contains_text("place 8"));
  CHECK_THAT(why([&] { (void)mesh.rank_at(Shape{0, 4}); }), contains_text("coordinate 0,4"));
}

TEST_CASE("meshes that differ in anything are not equal, and print what they are") {
  const auto mesh = DeviceMesh::from_shape({2, 4}, {"dp", "tp"});
  CHECK_FALSE(mesh == DeviceMesh::from_shape({2, 4}, {"dp", "cp"}));
  CHECK_FALSE(mesh == DeviceMesh::from_shape({4, 2}, {"dp", "tp"}));
  CHECK_FALSE(mesh == DeviceMesh::from_shape({2, 4}, {"dp", "tp"}, 1));
  CHECK_FALSE(mesh == DeviceMesh::from_ranks({0, 1, 2, 3, 4, 5, 7, 6}, {2, 4}, {"dp", "tp"}));
  CHECK(mesh.hash() == 0x92f7c4a8503e980ULL);  // the same in every process and run
  std::ostringstream out;
  out << mesh << DeviceMesh::from_ranks({3, 0, 1, 2}, {4});
  CHECK(out.str() == "DeviceMesh(dp=2, tp=4; ranks 0..7)DeviceMesh(dim0=4; ranks 3,0,1,2)");
}
