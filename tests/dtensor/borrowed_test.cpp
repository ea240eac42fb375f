// What ranks borrow by the placements of their DTensors.
#include <meshstage/dtensor/borrowed_tensors.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/mesh/replicated.hpp>

#include <meshstage/core/error/error.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;
using Paths = std::vector<std::string>;

namespace {

// Two hosts of two ranks: dp goes from host to host, tp stays on one.
const DeviceMesh& mesh() {
  static const DeviceMesh kMesh = DeviceMesh::from_shape({2, 2}, {"dp", "tp"});
  return kMesh;
}
const FailureDomains& hosts() {
  static const FailureDomains kHosts = FailureDomains::uniform(4, 2);
  return kHosts;
}

Value on(const DeviceMesh& where, int rank, const Shape& shape, const char* placements) {
  return dtensor::to_value(DTensor::from_full(Tensor::zeros(shape, DType::kF32), where, rank,
                                              parse_placements(placements)));
}

Dict state_of(int rank) {
  return Dict{{"everywhere", on(mesh(), rank, {64, 64}, "R,R")},
              {"along dp", on(mesh(), rank, {64, 64}, "R,S(1)")},
              {"along tp", on(mesh(), rank, {64, 64}, "S(0),R")},
              {"partial", on(mesh(), rank, {4}, "P(sum),S(0)")},
              {"list", List{Tuple{on(mesh(), rank, {1}, "R,S(0)")}}},  // tp 1 has nothing of it
              {"empty", on(mesh(), rank, {0}, "R,R")},
              {"plain", Tensor::zeros({5000}, DType::kF32)},
              {"step", std::int64_t{7}}};
}

}  // namespace

TEST_CASE(
    "borrowed tensors are those that the next rank on another host has, as both ranks see it") {
  const BorrowedTensors borrowed = dtensor::borrowed_tensors(mesh(), hosts());
  CHECK(borrowed.lenders == std::vector<std::vector<int>>{{2}, {3}, {0}, {1}});
  const auto both = [&](int owner, int at) {
    const auto theirs = borrowed.paths(state_of(owner), owner, at);
    CHECK(borrowed.paths(state_of(at), owner, at) == theirs);
    return theirs;
  };
  CHECK(both(0, 2) == Paths{"everywhere.local", "along dp.local", "list.0.0.local"});
  CHECK(both(2, 0) == Paths{"everywhere.local", "along dp.local", "list.0.0.local"});
  CHECK(both(3, 1) == Paths{"everywhere.local", "along dp.local"});
  CHECK(both(0, 1).empty());  // of the same host
  CHECK(both(0, 3).empty());  // not the next
  CHECK(both(0, 0).empty());
  for (const int nobody : {-1, 4}) {
    CHECK(borrowed.paths(state_of(0), 0, nobody).empty());
    CHECK(borrowed.paths(state_of(0), nobody, 0).empty());
  }
  // Another rank's part in the state says nothing of these two.
  CHECK(borrowed.paths(state_of(1), 0, 2).empty());
  // If ranks are what is lost, tp reaches another one too.
  const BorrowedTensors each = dtensor::borrowed_tensors(mesh(), hosts(), DomainLevel::kRank);
  CHECK(each.lenders[0] == std::vector<int>{1, 2});
  CHECK(each.paths(state_of(0), 0, 1) == Paths{"along tp.local"});
  CHECK(each.paths(state_of(1), 0, 1) == Paths{"along tp.local"});
  CHECK(dtensor::borrowed_tensors(mesh(), FailureDomains::uniform(4, 4)).lenders ==
        std::vector<std::vector<int>>(4));
}

TEST_CASE(
    "a tensor on a mesh of its own is borrowed from the ranks that are linked, and no others") {
  const BorrowedTensors borrowed = dtensor::borrowed_tensors(mesh(), hosts());
  const auto column = [](int rank) {
    return Dict{{"w", on(mesh().slice("dp", rank), rank, {8}, "R")}};
  };
  CHECK(borrowed.paths(column(1), 1, 3) == Paths{"w.local"});
  CHECK(borrowed.paths(column(3), 1, 3) == Paths{"w.local"});
  CHECK(borrowed.paths(column(1), 0, 2).empty());  // the mesh lacks rank 0
  // All ranks in one dimension: the next of another host than rank 1's is 2, which is not linked.
  const auto line = mesh().flatten();
  CHECK(lender_of(line, parse_placements("R"), hosts(), 1) == 2);
  for (const int at : {0, 2, 3}) {
    CHECK(borrowed.paths(Dict{{"w", on(line, 1, {8}, "R")}}, 1, at).empty());
  }
  CHECK(borrowed.paths(Dict{{"w", on(line, 0, {8}, "R")}}, 0, 2) == Paths{"w.local"});
  // A mesh that has more ranks than there are hosts for.
  const auto more = DeviceMesh::from_shape({6});
  CHECK_THROWS_AS(borrowed.paths(Dict{{"w", on(more, 2, {8}, "R")}}, 2, 0), InvalidArgument);
  CHECK_THROWS_AS(dtensor::borrowed_tensors(more, hosts()), InvalidArgument);
}
