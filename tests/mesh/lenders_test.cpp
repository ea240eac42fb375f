#include <meshstage/mesh/replicated.hpp>

#include <algorithm>
#include <random>
#include <set>

#include <meshstage/core/error/error.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

// The definition word by word: the subsets of the Replicate dimensions by size, then in the mesh's
// order, and the ranks of each subset's group from `rank` on.
std::optional<int> by_definition(const DeviceMesh& mesh, const Placements& placements,
                                 const FailureDomains& domains, int rank, DomainLevel level) {
  std::vector<std::vector<std::size_t>> subsets;
  for (unsigned bits = 1; bits < (1U << mesh.ndim()); ++bits) {
    std::vector<std::size_t> dims;
    for (std::size_t d = 0; d < mesh.ndim(); ++d) {
      if ((bits >> d & 1) != 0) dims.push_back(d);
    }
    if (std::all_of(dims.begin(), dims.end(),
                    [&](std::size_t d) { return placements[d].is_replicate(); })) {
      subsets.push_back(dims);
    }
  }
  std::sort(subsets.begin(), subsets.end(), [](const auto& a, const auto& b) {
    return std::pair(a.size(), a) < std::pair(b.size(), b);
  });
  for (const auto& dims : subsets) {
    std::vector<std::string> names;
    for (const std::size_t d : dims) names.push_back(mesh.names()[d]);
    const std::vector<int> group = mesh.slice(names, rank).ranks();
    const auto here = std::find(group.begin(), group.end(), rank) - group.begin();
    for (std::size_t i = 1; i < group.size(); ++i) {
      const int other = group[(static_cast<std::size_t>(here) + i) % group.size()];
      if (domains.domain_of(other, level) != domains.domain_of(rank, level)) return other;
    }
  }
  return {};
}

}  // namespace

TEST_CASE(
    "lender_of is its definition, for all ranks at once too, and possible_lenders are its "
    "answers") {
  std::mt19937 random(31);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  std::map<std::size_t, int> answers;  // ranks by how many lenders they have
  int several = 0;                     // answers that no dimension alone gives
  for (int round = 0; round < 300; ++round) {
    std::vector<std::int64_t> shape;
    for (int d = 0, n = 1 + below(4); d < n; ++d) shape.push_back(1 + below(3));
    std::int64_t size = 1;
    for (const auto s : shape) size *= s;
    const int world = static_cast<int>(size) + below(3);  // some ranks are not on the mesh
    std::vector<int> ranks(static_cast<std::size_t>(world));
    for (std::size_t i = 0; i < ranks.size(); ++i) ranks[i] = static_cast<int>(i);
    if (below(2) == 0) std::shuffle(ranks.begin(), ranks.end(), random);
    ranks.resize(static_cast<std::size_t>(size));
    const auto mesh = DeviceMesh::from_ranks(ranks, shape);
    // Hosts in order, at random, or one with nearly all ranks.
    std::vector<std::string> names;
    const int kind = below(3);
    const int hosts = 1 + below(5);
    for (int r = 0; r < world; ++r) {
      const int h = kind == 0 ? r / hosts : kind == 1 ? below(hosts) : below(12) == 0;
      names.push_back("h" + std::to_string(h));
    }
    auto domains = FailureDomains::from_host_names(names);
    auto level = below(4) == 0 ? DomainLevel::kRank : DomainLevel::kHost;
    if (below(4) == 0) {
      std::vector<Host> racked;
      for (int h = 0; h < domains.hosts(); ++h) {
        racked.push_back(domains.host(h));
        racked.back().rack = "r" + std::to_string(below(2));
      }
      domains = FailureDomains::from_hosts(racked);
      level = DomainLevel::kRack;
    }
    INFO(mesh << ", round " << round);
    std::vector<std::set<int>> all(static_cast<std::size_t>(world));
    for (unsigned bits = 0; bits < (1U << mesh.ndim()); ++bits) {
      Placements placements;
      for (std::size_t d = 0; d < mesh.ndim(); ++d) {
        placements.push_back((bits >> d & 1) != 0 ? Placement::replicate()
                             : below(2) == 0      ? Placement::shard(0)
                                                  : Placement::partial());
      }
      const auto at_once = lenders_by_place(mesh, placements, domains, level);
      REQUIRE(at_once.size() == static_cast<std::size_t>(size));
      for (std::int64_t p = 0; p < size; ++p) {
        const int rank = mesh.rank_at(p);
        const auto expected = by_definition(mesh, placements, domains, rank, level);
        CHECK(lender_of(mesh, placements, domains, rank, level) == expected);
        CHECK(at_once[static_cast<std::size_t>(p)] == expected.value_or(-1));
        if (!expected) continue;
        CHECK(same_shard(mesh, placements, rank, *expected));
        all[static_cast<std::size_t>(rank)].insert(*expected);
        std::size_t differ = 0;
        for (std::size_t d = 0; d < mesh.ndim(); ++d) {
          differ += (*mesh.coordinate(rank))[d] != (*mesh.coordinate(*expected))[d];
        }
        several += differ > 1;
      }
      CHECK_FALSE(lender_of(mesh, placements, domains, world, level));
      CHECK_FALSE(lender_of(mesh, placements, domains, -1, level));
    }
    const auto got = possible_lenders(mesh, domains, level);
    REQUIRE(got.size() == all.size());
    for (std::size_t r = 0; r < all.size(); ++r) {
      CHECK(got[r] == std::vector<int>(all[r].begin(), all[r].end()));
      ++answers[got[r].size()];
    }
  }
  for (const std::size_t n : {0, 1, 2, 3}) CHECK(answers[n] > 20);
  CHECK(several > 100);
}

TEST_CASE(
    "a rank borrows from the next one elsewhere, and from the same whatever else replicates") {
  // Two hosts of four: dp goes from host to host, tp stays on one.
  const auto mesh = DeviceMesh::from_shape({2, 4}, {"dp", "tp"});
  const auto domains = FailureDomains::uniform(8, 4);
  CHECK(lender_of(mesh, parse_placements("R,S(0)"), domains, 1) == 5);
  CHECK(lender_of(mesh, parse_placements("R,R"), domains, 1) == 5);
  CHECK(lender_of(mesh, parse_placements("S(0),R"), domains, 1) == std::nullopt);
  CHECK(lender_of(mesh, parse_placements("P,S(0)"), domains, 1) == std::nullopt);
  CHECK(lender_of(mesh, parse_placements("S(0),R"), domains, 1, DomainLevel::kRank) == 2);
  CHECK(possible_lenders(mesh, domains)[6] == std::vector<int>{2});
  // Around the end, and over those of the own host.
  const auto line = DeviceMesh::from_shape({8});
  CHECK(lender_of(line, parse_placements("R"), domains, 1) == 4);
  CHECK(lender_of(line, parse_placements("R"), domains, 6) == 0);
  CHECK(lender_of(line, parse_placements("R"), FailureDomains::uniform(8, 8), 6) == std::nullopt);
  CHECK_THROWS_AS(lender_of(line, parse_placements("R,R"), domains, 0), InvalidArgument);
  CHECK_THROWS_AS(lender_of(line, parse_placements("R"), domains, 0, DomainLevel::kRack),
                  InvalidArgument);
  CHECK_THROWS_AS(lender_of(line, parse_placements("R"), FailureDomains::uniform(4, 2), 2),
                  InvalidArgument);
  CHECK_THROWS_AS(possible_lenders(line, FailureDomains::uniform(4, 2)), InvalidArgument);
}

TEST_CASE("the lenders of an image are those who have tensors of which the rank has elements") {
  const auto mesh = DeviceMesh::from_shape({2, 4}, {"dp", "tp"});
  const auto domains = FailureDomains::uniform(10, 2);
  const auto of = [&](const std::vector<std::string>& words) {
    std::vector<TensorSpec> tensors;
    for (const auto& w : words) tensors.push_back(parse_tensor_spec(w));
    return lenders_of(mesh, tensors, domains);
  };
  using Lists = std::vector<std::vector<int>>;
  CHECK(of({}) == Lists(10));
  CHECK(of({"a=f32[8]:S(0),S(0)", "b=f32[8]:P,S(0)"}) == Lists(10));
  // 0 and 1 are a host, and so is each next pair; ranks 8 and 9 are not on the mesh.
  CHECK(of({"a=f32[8]:R,S(0)", "b=f32[8]:S(0),R"}) ==
        Lists{{2, 4}, {2, 5}, {0, 6}, {0, 7}, {0, 6}, {1, 6}, {2, 4}, {3, 4}, {}, {}});
  // Nobody has elements of a third part of two; the second tensor has a third.
  CHECK(of({"a=f32[2]:R,S(0)"}) == Lists{{4}, {5}, {}, {}, {0}, {1}, {}, {}, {}, {}});
  CHECK(of({"a=f32[2]:R,S(0)", "b=f32[3]:R,S(0)", "c=f32[0]:S(0),R"}) ==
        Lists{{4}, {5}, {6}, {}, {0}, {1}, {2}, {}, {}, {}});
  CHECK(of({"a=f32[2]:R,S(0)", "b=f32[4]:R,S(0)"}) ==
        Lists{{4}, {5}, {6}, {7}, {0}, {1}, {2}, {3}, {}, {}});
}

TEST_CASE("a million ranks, all but one of them on one host, take no more than a walk each") {
  std::vector<Host> hosts{{"large", "", {}}, {"small", "", {999999}}};
  for (int r = 0; r < 999999; ++r) hosts[0].ranks.push_back(r);
  const auto domains = FailureDomains::from_hosts(hosts);
  const auto mesh = DeviceMesh::from_shape({100, 100, 100});
  const auto at = lenders_by_place(mesh, parse_placements("R,R,R"), domains);
  CHECK(std::all_of(at.begin(), at.end() - 1, [](int rank) { return rank == 999999; }));
  CHECK(at.back() == 9999);
  const auto ranks = possible_lenders(mesh, domains);
  CHECK(ranks[0] == std::vector<int>{999999});
  CHECK(ranks[999999] == std::vector<int>{9999, 990099, 999900});
}
