#include <meshstage/mesh/survive.hpp>

#include <algorithm>
#include <bit>
#include <map>
#include <random>

#include <meshstage/core/error/error.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

// Every element of the tensor, by brute force: is it somewhere after these domains are lost? In the
// memory of a rank that is left and has it, or in the copy that a holder that is left has of it.
// Copies leave out what is borrowed.
bool survives(const FailureDomains& domains, const Holders& holders, const DeviceMesh& mesh,
              const TensorSpec& tensor, const SurviveOptions& options, unsigned lost) {
  const auto [part, placements] = place_of(mesh, tensor);
  const auto up = [&](int r) { return (lost >> domains.domain_of(r, options.level) & 1) == 0; };
  // Keys: element, and for Partial the coordinates whose contribution it is.
  std::map<std::vector<std::int64_t>, bool> alive;
  for (const int r : part.ranks()) {
    const auto c = *part.coordinate(r);
    const LocalShard s = local_shard(part, r, tensor.shape, placements);
    bool here = up(r);
    const bool borrowed =
        options.borrowed && lender_of(part, placements, domains, r, *options.borrowed);
    for (const int h : holders[static_cast<std::size_t>(r)]) here = here || (up(h) && !borrowed);
    for (std::int64_t i = 0; i < s.shape[0]; ++i) {
      for (std::int64_t j = 0; j < s.shape[1]; ++j) {
        std::vector<std::int64_t> key{s.offset[0] + i, s.offset[1] + j};
        for (std::size_t d = 0; d < part.ndim(); ++d) {
          key.push_back(placements[d].is_partial() ? c[d] : -1);
        }
        alive[key] = alive[key] || here;
      }
    }
  }
  return std::all_of(alive.begin(), alive.end(), [](const auto& kv) { return kv.second; });
}

// Every rank's image: it is there if its rank is left, or if a holder is and everybody who keeps a
// tensor for it.
bool images_survive(const FailureDomains& domains, const Holders& holders, const DeviceMesh& mesh,
                    const std::vector<TensorSpec>& tensors, const SurviveOptions& options,
                    unsigned lost) {
  const auto up = [&](int r) { return (lost >> domains.domain_of(r, options.level) & 1) == 0; };
  for (int r = 0; r < domains.world_size(); ++r) {
    if (up(r)) continue;
    const auto& mine = holders[static_cast<std::size_t>(r)];
    if (std::none_of(mine.begin(), mine.end(), up)) return false;
    for (const TensorSpec& tensor : tensors) {
      const auto [part, placements] = place_of(mesh, tensor);
      if (!options.borrowed || !part.contains(r)) continue;
      if (local_shard(part, r, tensor.shape, placements).empty()) continue;
      const auto lender = lender_of(part, placements, domains, r, *options.borrowed);
      if (lender && !up(*lender)) return false;
    }
  }
  return true;
}

void check_against(const Survival& got, int domains, const std::function<bool(unsigned)>& ok) {
  int always = domains;
  std::vector<int> first;
  for (int k = 1; k <= domains && first.empty(); ++k) {
    for (unsigned lost = 1; lost < (1U << domains); ++lost) {
      if (std::popcount(lost) != k || ok(lost)) continue;
      std::vector<int> set;
      for (int d = 0; d < domains; ++d) {
        if ((lost >> d & 1) != 0) set.push_back(d);
      }
      if (first.empty() || set < first) first = set;
      always = k - 1;
    }
  }
  CHECK(got.always_survived == always);
  CHECK(got.first_lost == first);
  for (const LossCount& c : got.counts) {
    double sets = 0;
    double survived = 0;
    for (unsigned lost = 1; lost < (1U << domains); ++lost) {
      if (std::popcount(lost) != c.lost) continue;
      sets += 1;
      survived += ok(lost) ? 1 : 0;
    }
    CHECK(c.sets == sets);
    CHECK(c.how != Knowledge::kNotEnumerated);
    CHECK(c.survived == survived);
  }
}

}  // namespace

TEST_CASE("what losses are survived is what trying them all finds") {
  std::mt19937 random(2024);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  int tensors_differ = 0;
  int borrowing_costs = 0;
  int borrowing_is_free = 0;
  std::map<DomainLevel, int> levels;
  for (int round = 0; round < 500; ++round) {
    std::vector<std::int64_t> shape{1 + below(3), 1 + below(3), 1 + below(2)};
    std::vector<int> ranks(static_cast<std::size_t>(shape[0] * shape[1] * shape[2]));
    for (std::size_t i = 0; i < ranks.size(); ++i) ranks[i] = static_cast<int>(i);
    std::shuffle(ranks.begin(), ranks.end(), random);
    const auto mesh = DeviceMesh::from_ranks(ranks, shape);
    const int world = static_cast<int>(mesh.size()) + below(3);  // some ranks outside the mesh
    std::vector<std::string> names;
    const int hosts = 1 + below(6);
    for (int r = 0; r < world; ++r) names.push_back("h" + std::to_string(below(hosts)));
    auto domains = FailureDomains::from_host_names(names);
    if (below(2) == 0) {
      std::vector<Host> racked;
      for (int h = 0; h < domains.hosts(); ++h) {
        racked.push_back(domains.host(h));
        racked.back().rack = "r" + std::to_string(below(3));
      }
      domains = FailureDomains::from_hosts(racked);
    }
    Holders holders(static_cast<std::size_t>(world));
    const int fewest = below(5);
    for (int r = 0; r < world; ++r) {
      for (int i = 0, n = fewest + below(3); i < n; ++i) {
        const int h = below(world);
        auto& mine = holders[static_cast<std::size_t>(r)];
        if (h != r && std::find(mine.begin(), mine.end(), h) == mine.end()) mine.push_back(h);
      }
    }
    std::vector<TensorSpec> tensors;
    for (int t = 0; t < 3; ++t) {
      TensorSpec spec{"t" + std::to_string(t), {below(6), 1 + below(6)}, {}, "f32", 4};
      for (int d = 0; d < 3; ++d) {
        if (below(6) == 0) {  // on a part of the mesh
          const auto& name = mesh.names()[static_cast<std::size_t>(d)];
          spec.only.push_back({name, below(static_cast<int>(mesh.size(name)))});
          continue;
        }
        const int kind = below(5);
        spec.placements.push_back(kind < 2   ? Placement::replicate()
                                  : kind < 4 ? Placement::shard(below(2))
                                             : Placement::partial());
      }
      tensors.push_back(spec);
    }
    const auto any_level = [&] {
      return domains.racks() > 0 && below(2) == 0 ? DomainLevel::kRack
             : below(3) == 0 && world <= 10       ? DomainLevel::kRank
                                                  : DomainLevel::kHost;
    };
    SurviveOptions options{.level = any_level()};
    if (round % 2 == 0) options.borrowed = any_level();
    ++levels[options.level];
    const auto report = survive(domains, holders, mesh, tensors, options);
    const int n = domains.count(options.level);
    CHECK(report.domains == n);
    check_against(report.ranks, n, [&](unsigned lost) {
      return images_survive(domains, holders, mesh, tensors, options, lost);
    });
    if (options.borrowed) {
      const auto whole = survive(domains, holders, mesh, tensors, {.level = options.level});
      CHECK(report.ranks.always_survived <= whole.ranks.always_survived);
      borrowing_costs += report.ranks.always_survived < whole.ranks.always_survived;
      borrowing_is_free += report.ranks.always_survived == whole.ranks.always_survived &&
                           whole.ranks.always_survived > 0;
    }
    REQUIRE(report.tensors.size() == tensors.size());
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      INFO(mesh << " " << to_string(tensors[t].placements) << " " << tensors[t].shape[0] << "x"
                << tensors[t].shape[1]);
      CHECK(report.tensors[t].name == tensors[t].name);
      check_against(report.tensors[t], n, [&](unsigned lost) {
        return survives(domains, holders, mesh, tensors[t], options, lost);
      });
      tensors_differ += report.tensors[t].always_survived != report.ranks.always_survived;
    }
  }
  CHECK(tensors_differ > 50);
  CHECK(borrowing_costs > 10);
  CHECK(borrowing_is_free > 10);
  for (const auto level : {DomainLevel::kRank, DomainLevel::kHost, DomainLevel::kRack}) {
    CHECK(levels[level] > 20);
  }
}

TEST_CASE("one copy on another host survives one host, and names the first pair that is lost") {
  const auto domains = FailureDomains::uniform(8, 2);
  const auto mesh = DeviceMesh::from_shape({2, 4}, {"dp", "tp"});
  const TensorSpec sharded{"w", {8, 8}, parse_placements("S(0),S(1)"), "f32", 4};
  const TensorSpec replicated{"b", {8, 8}, parse_placements("R,R"), "f32", 4};
  const auto report =
      survive(domains, make_holders(domains), mesh, std::vector<TensorSpec>{sharded, replicated});
  CHECK(report.ranks.always_survived == 1);
  CHECK(report.ranks.first_lost == std::vector<int>{0, 2});
  CHECK(report.ranks.lost_rank == 0);
  CHECK(report.ranks.counts[1].survived == 4);  // of 6 pairs; 0,2 and 1,3 are fatal
  CHECK(report.tensors[0].always_survived == 1);
  CHECK(report.tensors[1].always_survived == 3);
  CHECK(report.tensors[1].first_lost == std::vector<int>{0, 1, 2, 3});
}

TEST_CASE("a borrowed tensor makes the loss of a rank and of its lender fatal") {
  // Four hosts of two; three ranks elsewhere hold each rank's copies, and dp goes two hosts on.
  const auto domains = FailureDomains::uniform(8, 2);
  const auto mesh = DeviceMesh::from_shape({2, 4}, {"dp", "tp"});
  const auto holders = make_holders(domains, {.policy = PartnerPolicy::kAcrossHosts, .copies = 3});
  const std::vector<TensorSpec> tensors{parse_tensor_spec("w=f32[8,8]:R,S(0)"),
                                        parse_tensor_spec("m=f32[8,8]:S(0),S(1)")};
  const auto whole = survive(domains, holders, mesh, tensors);
  CHECK(whole.ranks.always_survived == 3);
  CHECK(whole.tensors[0].always_survived == 3);
  const auto borrowed = survive(domains, holders, mesh, tensors, {.borrowed = DomainLevel::kHost});
  CHECK(borrowed.ranks.always_survived == 1);
  CHECK(borrowed.ranks.first_lost == std::vector<int>{0, 2});
  CHECK(borrowed.ranks.lost_rank == 0);
  CHECK(borrowed.ranks.counts[1].survived == 4);  // of 6 pairs; 0,2 and 1,3 are fatal
  CHECK(borrowed.ranks.counts[1].how == Knowledge::kProven);
  CHECK(borrowed.tensors[0].always_survived == 1);
  CHECK(borrowed.tensors[1].always_survived == 3);
}

TEST_CASE("what is too much to list is called not enumerated, never survived") {
  const auto domains = FailureDomains::uniform(64, 1);
  const auto mesh = DeviceMesh::from_shape({64});
  const auto report = survive(domains, make_holders(domains), mesh, {}, {.enumerate_at_most = 100});
  REQUIRE(report.ranks.counts.size() == 4);
  CHECK(report.ranks.counts[0].how == Knowledge::kProven);
  CHECK(report.ranks.counts[1].how == Knowledge::kProven);
  CHECK(report.ranks.counts[1].survived == 64 * 63 / 2 - 32);
  CHECK(report.ranks.counts[2].how == Knowledge::kNotEnumerated);
  CHECK(report.ranks.counts[2].survived == 0);
}

TEST_CASE("holders, mesh and hosts that do not fit each other are refused") {
  const auto domains = FailureDomains::uniform(4, 2);
  const auto mesh = DeviceMesh::from_shape({4});
  CHECK_THROWS_AS(survive(domains, {{1}}, mesh, {}), InvalidArgument);
  CHECK_THROWS_AS(survive(domains, make_holders(domains), DeviceMesh::from_shape({5}), {}),
                  InvalidArgument);
  CHECK_THROWS_AS(survive(domains, make_holders(domains), mesh, {}, {.level = DomainLevel::kRack}),
                  InvalidArgument);
}
