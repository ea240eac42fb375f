// Resharding plans against plain slicing: each rank gets each of its elements once, from a rank
// that has it.
#include <map>
#include <random>
#include <set>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/reshard.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

using Sizes = std::vector<std::int64_t>;

/// Calls f(element) for each element of a box, as its place in the whole tensor, row-major.
template <class F>
void for_each_element(const Sizes& offset, const Sizes& shape, const Sizes& whole, F&& f) {
  std::int64_t count = 1;
  for (const auto s : shape) count *= s;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i, place = 0, stride = 1;
    for (std::size_t d = shape.size(); d-- > 0;) {
      place += (offset[d] + rest % shape[d]) * stride;
      rest /= shape[d];
      stride *= whole[d];
    }
    f(place);
  }
}

std::set<std::int64_t> elements_of(const PlacedTensor& placed, int rank, const Sizes& whole) {
  const auto block = local_shard(placed.mesh, rank, whole, placed.placements);
  std::set<std::int64_t> elements;
  for_each_element(block.offset, block.shape, whole, [&](auto e) { elements.insert(e); });
  return elements;
}

PlacedTensor random_placed(std::mt19937& random, std::size_t tensor_dims) {
  Sizes shape;
  for (auto n = 1 + random() % 3; n > 0; --n) shape.push_back(1 + static_cast<int>(random() % 4));
  std::int64_t size = 1;
  for (const auto s : shape) size *= s;
  std::vector<int> ranks;
  const int first = static_cast<int>(random() % 3);
  for (int r = 0; r < size; ++r) ranks.push_back(first + r);
  if (random() % 2 == 0) std::shuffle(ranks.begin(), ranks.end(), random);
  Placements placements;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    // Several mesh dimensions on one tensor dimension, too.
    placements.push_back(tensor_dims == 0 || random() % 3 == 0
                             ? Placement::replicate()
                             : Placement::shard(static_cast<int>(random() % tensor_dims)));
  }
  return {DeviceMesh::from_ranks(ranks, shape), placements};
}

/// What is wrong with a plan; "" if nothing.
std::string problem(const PlacedTensor& before, const PlacedTensor& after, const Sizes& whole,
                    const std::vector<ReshardBox>& boxes) {
  std::map<int, std::map<std::int64_t, int>> got;  // by receiver: how often each element
  for (const auto& box : boxes) {
    const auto has = elements_of(before, box.from, whole);
    if (elements_of(before, box.to >= 0 && before.mesh.contains(box.to) ? box.to : box.from, whole)
            .empty() &&
        box.from == box.to) {
      return "sends to itself what it has not";
    }
    bool sound = box.offset.size() == whole.size() && box.shape.size() == whole.size();
    for (const auto s : box.shape) sound = sound && s > 0;
    if (!sound) return "an empty box";
    bool itself = before.mesh.contains(box.to);
    const auto own = itself ? elements_of(before, box.to, whole) : std::set<std::int64_t>();
    std::string wrong;
    for_each_element(box.offset, box.shape, whole, [&](auto e) {
      if (!has.contains(e)) wrong = "the sender has it not";
      itself = itself && own.contains(e);
      ++got[box.to][e];
    });
    if (!wrong.empty()) return wrong;
    if (itself && box.from != box.to) return "comes from another, though the rank has it";
  }
  for (const int rank : after.mesh.ranks()) {
    const auto wanted = elements_of(after, rank, whole);
    if (got[rank].size() != wanted.size()) return "another number of elements";
    for (const auto& [element, times] : got[rank]) {
      if (times != 1 || !wanted.contains(element)) return "an element twice, or not wanted";
    }
    std::vector<ReshardBox> mine;
    for (const auto& box : boxes) {
      if (box.to == rank) mine.push_back(box);
    }
    if (mine != plan_reshard_to(before, after, whole, rank)) return "the rank's own plan differs";
  }
  return "";
}

}  // namespace

TEST_CASE("resharding: 500 random pairs of meshes, shapes and placements against plain slicing") {
  std::vector<std::string> wrong;
  for (unsigned seed = 0; seed < 500; ++seed) {
    std::mt19937 random(seed);
    Sizes whole;
    for (auto n = random() % 4; n > 0; --n) whole.push_back(static_cast<int>(random() % 9));
    const auto before = random_placed(random, whole.size());
    const auto after = random_placed(random, whole.size());
    const auto found = problem(before, after, whole, plan_reshard(before, after, whole));
    if (!found.empty()) {
      wrong.push_back("seed " + std::to_string(seed) + ", " + before.mesh.to_string() + " " +
                      to_string(before.placements) + " to " + after.mesh.to_string() + " " +
                      to_string(after.placements) + ": " + found);
    }
  }
  CHECK(wrong == std::vector<std::string>{});
}

TEST_CASE("resharding: 4 to 3 to 6 to 1 to 8 ranks in a row keeps every element") {
  const Sizes whole{7, 5};
  std::map<int, std::map<std::int64_t, double>> held;  // by rank, by element
  const auto placed = [](Sizes mesh, const std::string& placements) {
    return PlacedTensor{DeviceMesh::from_shape(std::move(mesh)), parse_placements(placements)};
  };
  auto now = placed({4}, "S(0)");
  for (const int rank : now.mesh.ranks()) {
    for (const auto e : elements_of(now, rank, whole)) held[rank][e] = 0.5 * static_cast<double>(e);
  }
  for (const auto& next : {placed({3}, "S(0)"), placed({2, 3}, "S(1),S(0)"), placed({1}, "R"),
                           placed({2, 2, 2}, "S(0),R,S(0)")}) {
    std::map<int, std::map<std::int64_t, double>> after;
    for (const auto& box : plan_reshard(now, next, whole)) {
      for_each_element(box.offset, box.shape, whole,
                       [&](auto e) { after[box.to][e] = held[box.from].at(e); });
    }
    held = std::move(after);
    now = next;
  }
  for (const int rank : now.mesh.ranks()) {
    for (const auto e : elements_of(now, rank, whole))
      CHECK(held[rank].at(e) == 0.5 * static_cast<double>(e));
  }
}

TEST_CASE("resharding: copies take turns, and what a rank has it sends to nobody but itself") {
  const PlacedTensor before{DeviceMesh::from_shape({4}), {Placement::replicate()}};
  const PlacedTensor after{DeviceMesh::from_shape({8}, {}, 4), {Placement::shard(0)}};
  std::map<int, int> sent;
  for (const auto& box : plan_reshard(before, after, Sizes{16})) ++sent[box.from];
  CHECK(sent == std::map<int, int>{{0, 2}, {1, 2}, {2, 2}, {3, 2}});
  const auto same = plan_reshard(before, before, Sizes{16});
  CHECK(same.size() == 4);
  for (const auto& box : same) CHECK(box.from == box.to);
  CHECK(plan_reshard(before, after, Sizes{0, 3}).empty());
  CHECK(plan_reshard(before, before, Sizes{}).size() == 4);  // one element
}

TEST_CASE("resharding: partials, other numbers of placements and unknown ranks are refused") {
  const PlacedTensor whole{DeviceMesh::from_shape({2}), {Placement::replicate()}};
  const PlacedTensor partial{DeviceMesh::from_shape({2}), {Placement::partial()}};
  const PlacedTensor wrong{DeviceMesh::from_shape({2, 2}), {Placement::replicate()}};
  CHECK_THROWS_WITH(plan_reshard(partial, whole, Sizes{4}), contains_text("P(sum) before"));
  CHECK_THROWS_WITH(plan_reshard(whole, partial, Sizes{4}), contains_text("after"));
  CHECK_THROWS_AS(plan_reshard(wrong, whole, Sizes{4}), InvalidArgument);
  CHECK_THROWS_WITH(plan_reshard_to(whole, whole, Sizes{4}, 2), contains_text("no rank 2"));
  // Large tensors on large meshes are planned for one rank at a time.
  const PlacedTensor large{DeviceMesh::from_shape({1000, 8}),
                           {Placement::shard(0), Placement::shard(1)}};
  const PlacedTensor larger{DeviceMesh::from_shape({999, 7}),
                            {Placement::shard(0), Placement::shard(1)}};
  std::int64_t elements = 0;
  for (const auto& box : plan_reshard_to(large, larger, Sizes{1'000'000, 10'000}, 6000))
    elements += box.shape[0] * box.shape[1];
  CHECK(elements ==
        local_shard(larger.mesh, 6000, Sizes{1'000'000, 10'000}, larger.placements).numel());
}
