#include <meshstage/mesh/mesh_groups.hpp>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/failure_domains.hpp>
#include "tests/conformance/ranks.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/idle_group.hpp"

using namespace meshstage;

namespace {

// A group that only knows its members.
class MemberList final : public meshstage::test::IdleGroup {
 public:
  MemberList(std::vector<int> ranks, int rank) : ranks_(std::move(ranks)), rank_(rank) {}
  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return static_cast<int>(ranks_.size()); }
  [[nodiscard]] bool linked(int) const noexcept override { return false; }
  [[nodiscard]] std::shared_ptr<ProcessGroup> split(std::span<const int> ranks) override {
    ++splits;
    int here = -1;
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      if (ranks[i] == rank_) here = static_cast<int>(i);
    }
    return std::make_shared<MemberList>(std::vector<int>(ranks.begin(), ranks.end()), here);
  }
  [[nodiscard]] const std::vector<int>& members() const { return ranks_; }
  int splits = 0;

 private:
  std::vector<int> ranks_;
  int rank_;
};

std::vector<int> members(const std::shared_ptr<ProcessGroup>& group) {
  return dynamic_cast<MemberList&>(*group).members();
}

}  // namespace

TEST_CASE("the groups of a mesh are made when they are first used, once") {
  const auto world = std::make_shared<MemberList>(std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7}, 6);
  MeshGroups groups(DeviceMesh::from_shape({2, 2, 2}, {"pp", "dp", "tp"}), world);
  CHECK(world->splits == 0);
  CHECK(members(groups.group("dp")) == std::vector<int>{4, 6});
  CHECK(groups.group("dp")->rank() == 1);
  CHECK(world->splits == 1);
  CHECK(groups.group("dp") == groups.group("dp"));
  CHECK(members(groups.group(std::vector<std::string>{"pp", "dp"})) ==
        std::vector<int>{0, 2, 4, 6});
  CHECK(world->splits == 2);
  CHECK_THROWS_AS(groups.group("x"), InvalidArgument);
}

TEST_CASE("a group that exists already takes its dimension if it fits") {
  const auto world = std::make_shared<MemberList>(std::vector<int>{0, 1, 2, 3}, 2);
  MeshGroups groups(DeviceMesh::from_shape({2, 2}, {"dp", "tp"}), world);
  const auto mine = std::make_shared<MemberList>(std::vector<int>{0, 2}, 1);
  groups.adopt("dp", mine);
  CHECK(groups.group("dp") == mine);
  CHECK(world->splits == 0);
  CHECK_THROWS_AS(groups.adopt("dp", mine), InvalidState);
  CHECK_THROWS_AS(groups.adopt("tp", mine), InvalidArgument);  // rank 2 is 0 along tp
  CHECK_THROWS_AS(groups.adopt("tp", world), InvalidArgument);
}

TEST_CASE("a rank outside the mesh has no groups, and the mesh no rank outside the world") {
  const auto world = std::make_shared<MemberList>(std::vector<int>{0, 1, 2, 3}, 3);
  CHECK_THROWS_AS(MeshGroups(DeviceMesh::from_shape({3}), world), InvalidArgument);
  CHECK_THROWS_AS(MeshGroups(DeviceMesh::from_shape({5}), world), InvalidArgument);
}

TEST_CASE("the groups of a mesh connect the ranks that the mesh says") {
  constexpr int kRanks = 8;
  InProcessFabric fabric;
  const auto world = testing::make_groups([&](int rank) { return fabric.attach(rank); }, kRanks,
                                          testing::Linked::kAll);
  const auto mesh = DeviceMesh::from_ranks({3, 7, 1, 5, 6, 4, 2, 0}, {2, 2, 2}, {"pp", "dp", "tp"});
  std::vector<std::vector<std::int64_t>> sums(kRanks);
  testing::run_ranks_without_error(kRanks, [&](int rank) {
    MeshGroups groups(mesh, world[static_cast<std::size_t>(rank)]);
    for (const auto& names : std::vector<std::vector<std::string>>{{"dp"}, {"tp", "pp"}, {"tp"}}) {
      std::vector<std::int64_t> sum{std::int64_t{1} << rank};
      collectives::all_reduce(*groups.group(names), std::span(sum), collectives::ReduceOp::kSum,
                              Deadline::after(std::chrono::seconds(30)));
      sums[static_cast<std::size_t>(rank)].push_back(sum[0]);
    }
  });
  for (int rank = 0; rank < kRanks; ++rank) {
    std::vector<std::int64_t> expected;
    for (const auto& names : std::vector<std::vector<std::string>>{{"dp"}, {"tp", "pp"}, {"tp"}}) {
      std::int64_t sum = 0;
      for (const int r : mesh.slice(names, rank).ranks()) sum += std::int64_t{1} << r;
      expected.push_back(sum);
    }
    CHECK(sums[static_cast<std::size_t>(rank)] == expected);
  }
}

TEST_CASE("all ranks gather the same hosts and racks, or the same error") {
  constexpr int kRanks = 5;
  InProcessFabric fabric;
  const auto world = testing::make_groups([&](int rank) { return fabric.attach(rank); }, kRanks,
                                          testing::Linked::kTree);
  const auto deadline = Deadline::after(std::chrono::seconds(30));
  const std::vector<std::string> hosts{"b", "a", "b", "c", "a"};
  std::vector<std::optional<FailureDomains>> got(kRanks);
  testing::run_ranks_without_error(kRanks, [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    got[r] =
        gather_failure_domains(*world[r], hosts[r], hosts[r] == "c" ? "south" : "north", deadline);
  });
  const auto expected = FailureDomains::from_hosts(
      {{"b", "north", {0, 2}}, {"a", "north", {1, 4}}, {"c", "south", {3}}});
  for (const auto& g : got) CHECK(g == expected);
  // Rank 4 is on host a, as rank 1 is, but says another rack.
  const auto errors = testing::run_ranks(kRanks, [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    (void)gather_failure_domains(*world[r], hosts[r], rank == 4 ? "south" : "north", deadline);
  });
  for (const auto& e : errors) {
    CHECK(e == errors.front());
    CHECK_THAT(e, contains_text("host 'a' is in rack 'north' to rank 1 and in 'south' to rank 4"));
  }
  CHECK_FALSE(host_name().empty());
}
