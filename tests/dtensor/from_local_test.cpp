#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/dtensor.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/ranks_on_mesh.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

struct Given {
  Tensor local = Tensor::zeros({2, 3}, DType::kF32);
  Placements placements{Placement::shard(0)};
  FromLocalOptions options;
};

/// What from_local() says at four ranks of which one is given something of its own; the same at
/// all, or the test fails.
std::string error_at_all(const std::function<void(Given&)>& mistake,
                         const std::function<void(Given&)>& everywhere = {}, int who = 2) {
  RanksOnMesh ranks(DeviceMesh::from_shape({4}));
  std::vector<int> named(4, -1);
  const auto errors = ranks.errors([&](MeshGroups& groups) {
    Given given;
    if (everywhere) everywhere(given);
    if (groups.rank() == who) mistake(given);
    try {
      (void)DTensor::from_local(given.local, groups, given.placements, soon(), given.options);
    } catch (const InvalidArgument& e) {
      named[static_cast<std::size_t>(groups.rank())] = e.rank().value_or(-1);
      throw;
    }
  });
  CHECK(errors == std::vector<std::string>(4, errors[0]));
  CHECK(named == std::vector<int>(4, named[0]));
  CHECK_FALSE(errors[0].empty());
  return errors[0];
}

}  // namespace

TEST_CASE("from_local finds the global shape and strides, with uneven and empty parts") {
  RanksOnMesh ranks(DeviceMesh::from_shape({2, 3}, {"dp", "tp"}));
  std::vector<Shape> shapes(6);
  std::vector<char> keeps(6);
  std::vector<std::string> texts(6);
  ranks.run([&](MeshGroups& groups) {
    const auto r = static_cast<std::size_t>(groups.rank());
    const auto part = local_shard(groups.mesh(), groups.rank(), Shape{4, 7},
                                  parse_placements("S(1),S(0)"));  // rank 2 and 5 have nothing
    const Tensor local = Tensor::zeros(part.shape, DType::kF32);
    const auto d = DTensor::from_local(local, groups, parse_placements("S(-1),S(0)"), soon());
    shapes[r] = d.shape();
    keeps[r] = d.to_local().identity() == local.identity() && d.stride() == Strides{7, 1} &&
               d.local_shard() == part && d.rank() == groups.rank();
    texts[r] = d.to_string();
  });
  CHECK(shapes == std::vector<Shape>(6, {4, 7}));
  CHECK(keeps == std::vector<char>(6, 1));
  CHECK(texts[3] ==
        "DTensor(F32[4, 7] as S(1),S(0) on DeviceMesh(dp=2, tp=3; ranks 0..5); rank 3 has [2, 3] "
        "at [0, 4])");
}

TEST_CASE("one rank's mistake is the same error on every rank, and names the rank") {
  CHECK_THAT(error_at_all([](Given& g) { g.local = Tensor::zeros({2, 3}, DType::kF64); }),
             Contains("rank 2") && Contains("F64") && Contains("F32"));
  // Most are right, also against the first.
  CHECK_THAT(error_at_all([](Given& g) { g.local = Tensor::zeros({2, 3}, DType::kF64); }, {}, 0),
             Contains("rank 0: ") && Contains("F64"));
  CHECK_THAT(error_at_all([](Given& g) { g.placements = {Placement()}; }),
             Contains("rank 2") && Contains("R") && Contains("S(0)"));
  CHECK_THAT(error_at_all([](Given& g) { g.local = Tensor::zeros({2, 4}, DType::kF32); }),
             Contains("rank 2") && Contains("[2, 4]") && Contains("[2, 3]"));
  CHECK_THAT(error_at_all([](Given& g) { g.local = Tensor::zeros({6}, DType::kF32); }),
             Contains("rank 2") && Contains("number of dimensions is 1"));
  CHECK_THAT(error_at_all([](Given& g) { g.local = Tensor(); }),
             Contains("rank 2") && Contains("undefined"));
  CHECK_THAT(error_at_all([](Given& g) { g.options.shape = Shape{8, 3}; }),
             Contains("rank 2") && Contains("[8, 3]"));
  CHECK_THAT(error_at_all([](Given& g) { g.local = Tensor::zeros({3, 3}, DType::kF32); },
                          [](Given& g) { g.options.shape = Shape{8, 3}; }),
             Contains("rank 2") && Contains("[3, 3]") && Contains("is [2, 3]"));
}

TEST_CASE("what all ranks get wrong is an error at all of them too") {
  const auto nothing = [](Given&) {};
  CHECK_THAT(error_at_all(nothing, [](Given& g) { g.placements = {Placement::shard(2)}; }),
             Contains("2"));
  CHECK_THAT(error_at_all(nothing, [](Given& g) { g.placements = {}; }), Contains("placements"));
  CHECK_THAT(error_at_all(nothing, [](Given& g) { g.options.stride = Strides{4, 1}; }),
             Contains("[4, 1]") && Contains("holes"));
  CHECK_THAT(error_at_all(nothing, [](Given& g) { g.options.shape = Shape{9, 3}; }),
             Contains("rank 0"));
}

TEST_CASE("from_spec and from_full check what they are given without communication") {
  const auto mesh = DeviceMesh::from_shape({3});
  const DTensorSpec spec{mesh, {Placement::shard(0)}, DType::kF32, {7}, {1}};
  CHECK(DTensor::from_spec(Tensor::zeros({1}, DType::kF32), spec, 2).spec() == spec);
  CHECK_THROWS_AS(DTensor::from_spec(Tensor::zeros({3}, DType::kF32), spec, 2), InvalidArgument);
  CHECK_THROWS_AS(DTensor::from_spec(Tensor::zeros({1}, DType::kI32), spec, 2), InvalidArgument);
  CHECK_THROWS_AS(DTensor::from_spec(Tensor::zeros({1}, DType::kF32), spec, 3), InvalidArgument);
  CHECK_THROWS_AS(DTensor::from_full(Tensor(), mesh, 0, {Placement()}), InvalidArgument);
  CHECK_THROWS_AS(DTensor::from_full(Tensor::zeros({4}, DType::kF32), mesh, 0, {}),
                  InvalidArgument);
  const auto part = DTensor::from_full(Tensor::arange<float>(7), mesh, 1, {Placement::shard(-1)});
  CHECK(part.spec() == spec);
  CHECK(part.to_local().to_vector<float>() == std::vector<float>{3, 4, 5});
}

TEST_CASE("specs are equal if all of mesh, placements, dtype, shape and strides are") {
  const DTensorSpec spec{
      DeviceMesh::from_shape({2, 2}), parse_placements("S(0),R"), DType::kF32, {4, 2}, {2, 1}};
  CHECK(spec == DTensorSpec(spec));
  for (int field = 0; field < 5; ++field) {
    auto other = spec;
    if (field == 0) other.mesh = DeviceMesh::from_ranks({0, 2, 1, 3}, {2, 2});
    if (field == 1) other.placements[1] = Placement::shard(1);
    if (field == 2) other.dtype = DType::kF16;
    if (field == 3) other.shape = {4, 3};
    if (field == 4) other.stride = {1, 4};
    CHECK_FALSE(spec == other);
  }
}
