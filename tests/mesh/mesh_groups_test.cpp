#include <meshstage/mesh/mesh_groups.hpp>

#include <meshstage/core/error/error.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

// A group that only knows its members.
class MemberList final : public ProcessGroup {
 public:
  MemberList(std::vector<int> ranks, int rank) : ranks_(std::move(ranks)), rank_(rank) {}
  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return static_cast<int>(ranks_.size()); }
  [[nodiscard]] bool linked(int) const noexcept override { return false; }
  [[nodiscard]] std::unique_ptr<Transfer> send(int, std::uint64_t,
                                               std::span<const std::byte>) override {
    return nullptr;
  }
  [[nodiscard]] std::unique_ptr<Transfer> receive(int, std::uint64_t,
                                                  std::span<std::byte>) override {
    return nullptr;
  }
  void abort(std::exception_ptr) noexcept override {}
  void close() noexcept override {}
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
