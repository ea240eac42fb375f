#include <sstream>

#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/dtensor.hpp>

#include "tests/dtensor/definition.hpp"
#include "tests/dtensor/random_cases.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/ranks_on_mesh.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

std::string described(const DeviceMesh& mesh, const Shape& shape, const Placements& from,
                      const Placements& to) {
  return mesh.to_string() + " " + to_string(shape) + ": " + to_string(from) + " to " +
         to_string(to);
}

/// One case against the definition; returns what is wrong.
std::string check_case(RanksOnMesh& ranks, const Shape& shape, const Placements& from,
                       const Placements& to, const std::vector<Tensor>& locals) {
  const DeviceMesh& mesh = ranks.mesh();
  const auto whole = whole_by_definition(mesh, shape, from, locals);
  if (!whole) return "the test's own tensors make no whole";
  std::vector<Tensor> moved(locals.size());
  std::vector<Tensor> full(locals.size());
  ranks.run([&](MeshGroups& groups) {
    const auto place = static_cast<std::size_t>(*mesh.index_of(groups.rank()));
    const auto before = DTensor::from_local(locals[place], groups, from, soon(), {.shape = shape});
    const auto after = before.redistribute(groups, to, soon());
    moved[place] = after.to_local();
    full[place] = after.full_tensor(groups, soon());
  });
  const auto again = whole_by_definition(mesh, shape, to, moved);
  if (!again) return "the local tensors are no " + to_string(to);
  if (*again != *whole) return "the local tensors make another whole";
  for (const Tensor& f : full) {
    if (f.shape() != shape || !same_bits(f, Tensor::from_vector(*whole, shape))) {
      return "full_tensor() is another";
    }
  }
  return "";
}

}  // namespace

TEST_CASE("redistributing and gathering gives the full tensor, on random meshes and placements") {
  std::vector<std::string> wrong;
  for (std::uint32_t seed = 0; seed < 150; ++seed) {
    Chance chance(seed);
    RanksOnMesh ranks(chance.mesh(12));
    for (int round = 0; round < 4; ++round) {
      const Shape shape = chance.shape();
      const auto from = chance.placements(ranks.mesh().ndim(), shape.size());
      const auto to = chance.placements(ranks.mesh().ndim(), shape.size());
      const auto locals = random_locals(chance, ranks.mesh(), shape, from);
      const auto problem = check_case(ranks, shape, from, to, locals);
      if (!problem.empty()) {
        wrong.push_back("seed " + std::to_string(seed) + ", " +
                        described(ranks.mesh(), shape, from, to) + ": " + problem);
      }
    }
  }
  CHECK(wrong == std::vector<std::string>{});
}

TEST_CASE("every pair of placements on a mesh of two dimensions, with uneven and empty shards") {
  std::vector<std::string> wrong;
  Chance chance(7);
  RanksOnMesh ranks(DeviceMesh::from_shape({2, 3}, {"dp", "tp"}));
  Placements kinds{Placement::replicate(), Placement::shard(0), Placement::shard(1)};
  for (int op = 0; op < 5; ++op) kinds.push_back(Placement::partial(static_cast<ReduceOp>(op)));
  const Shape shape{4, 2};
  for (std::size_t f = 0; f < 64; ++f) {
    const Placements from{kinds[f / 8], kinds[f % 8]};
    const auto locals = random_locals(chance, ranks.mesh(), shape, from);
    for (std::size_t t = 0; t < 64; t += 1 + f % 3) {
      const Placements to{kinds[t / 8], kinds[t % 8]};
      const auto problem = check_case(ranks, shape, from, to, locals);
      if (!problem.empty()) {
        wrong.push_back(described(ranks.mesh(), shape, from, to) + ": " + problem);
      }
    }
  }
  CHECK(wrong == std::vector<std::string>{});
}

TEST_CASE("large blocks travel in parts, whatever their strides") {
  RanksOnMesh ranks(DeviceMesh::from_shape({2, 2}));
  const Shape shape{37, 11, 1031};  // parts of 1/8 of a block: cut within and across dimensions
  Tensor whole = Tensor::empty(shape, DType::kF64);
  double next = 0;
  for (double& x : whole.span<double>()) x = next++;
  const std::vector<std::pair<std::string, std::string>> moves{{"S(0),S(1)", "S(2),R"},
                                                               {"S(2),S(2)", "S(0),S(0)"},
                                                               {"R,S(1)", "S(1),S(2)"},
                                                               {"S(1),P(sum)", "R,R"}};
  for (const auto& [from, to] : moves) {
    INFO(from << " to " << to);
    std::vector<char> equal(4);
    ranks.run([&](MeshGroups& groups) {
      auto given = DTensor::from_full(whole, groups.mesh(), groups.rank(), parse_placements(from));
      // The same elements, laid out the other way round.
      auto local = given.to_local();
      const auto n = static_cast<std::int64_t>(local.dim()) - 1;
      local = local.transpose(0, n).clone().transpose(0, n);
      given = DTensor::from_spec(local, given.spec(), groups.rank());
      const auto moved = given.redistribute(groups, parse_placements(to), soon());
      const auto expected =
          DTensor::from_full(whole, groups.mesh(), groups.rank(), parse_placements(to));
      equal[static_cast<std::size_t>(groups.rank())] =
          same_bits(moved.to_local(), expected.to_local()) &&
          same_bits(moved.full_tensor(groups, soon()), whole);
    });
    CHECK(equal == std::vector<char>(4, 1));
  }
}

TEST_CASE("types without arithmetic move all the same, bit for bit; negative zeros stay") {
  RanksOnMesh ranks(DeviceMesh::from_shape({3}));
  std::vector<BFloat16> bits(10);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i].bits = static_cast<std::uint16_t>(6553 * i);
  const auto odd = Tensor::from_vector(bits);
  const auto complex = Tensor::full<std::complex<double>>({5, 2}, {-0.0, 1});
  const auto zeros = Tensor::full<float>({4}, -0.0F);
  std::vector<std::string> wrong(3);
  ranks.run([&](MeshGroups& groups) {
    for (const auto& whole : {odd, complex, zeros}) {
      for (const std::string to : {"R", "P(sum)", "P(max)", "P(product)"}) {
        const auto d =
            DTensor::from_full(whole, groups.mesh(), groups.rank(), {Placement::shard(0)});
        const auto moved = d.redistribute(groups, parse_placements(to), soon());
        // What cannot be reduced is looked at where it is whole.
        const bool reducible = whole.dtype() != DType::kC128;
        const auto full = reducible            ? moved.full_tensor(groups, soon())
                          : groups.rank() == 0 ? moved.to_local()
                                               : whole;
        if (!same_bits(full, whole)) {
          wrong[static_cast<std::size_t>(groups.rank())] += whole.describe() + " " + to + "; ";
        }
      }
    }
  });
  CHECK(wrong == std::vector<std::string>(3));
}

TEST_CASE("an average of f16 does not overflow where the mean fits") {
  RanksOnMesh ranks(DeviceMesh::from_shape({2, 3}));
  const Half large{0x7b53};  // 60000
  const Half small{0x8001};  // the least, negative
  for (const std::string from : {"P(avg),P(avg)", "P(avg),P(max)", "P(max),P(avg)", "R,P(avg)"}) {
    for (const std::string to : {"R,R", "S(0),R", "R,S(1)", "P(sum),S(0)", "P(max),R"}) {
      INFO(from << " to " << to);
      std::vector<std::string> wrong(6);
      ranks.run([&](MeshGroups& groups) {
        const auto local =
            Tensor::from_vector<Half>({large, small, large, large, small, large}, {3, 2})
                .transpose(0, 1);
        const auto d = DTensor::from_local(local, groups, parse_placements(from), soon());
        const auto moved = d.redistribute(groups, parse_placements(to), soon());
        const auto full = moved.full_tensor(groups, soon());
        if (!same_bits(full, local)) wrong[static_cast<std::size_t>(groups.rank())] = "differs";
      });
      CHECK(wrong == std::vector<std::string>(6));
    }
  }
}

TEST_CASE("a reduction that the dtype cannot is refused by all ranks before anything is sent") {
  RanksOnMesh ranks(DeviceMesh::from_shape({2}));
  for (const auto& [op, dtype] :
       {std::pair("P(sum)", DType::kBool), {"P(avg)", DType::kI32}, {"P(max)", DType::kC64}}) {
    const auto errors = ranks.errors([&](MeshGroups& groups) {
      const auto d =
          DTensor::from_local(Tensor::zeros({4}, dtype), groups, parse_placements(op), soon());
      (void)d.redistribute(groups, {Placement::shard(0)}, soon());
    });
    CHECK_THAT(errors[0], Catch::Matchers::Contains("cannot be partial"));
    CHECK(errors[0] == errors[1]);
  }
  // The groups are as good as before.
  ranks.run([&](MeshGroups& groups) {
    (void)DTensor::from_full(Tensor::arange<float>(4), groups.mesh(), groups.rank(),
                             {Placement::shard(0)})
        .full_tensor(groups, soon());
  });
}

TEST_CASE("replicas of a reduced tensor have the same bits where sums are rounded") {
  RanksOnMesh ranks(DeviceMesh::from_shape({5}));
  std::vector<Tensor> full(5);
  std::vector<Tensor> scalar(5);
  ranks.run([&](MeshGroups& groups) {
    const auto r = static_cast<std::size_t>(groups.rank());
    const auto part = Tensor::full<float>({7, 3}, 1.0F / static_cast<float>(3 + 7 * r));
    full[r] = DTensor::from_local(part, groups, {Placement::partial()}, soon())
                  .full_tensor(groups, soon());
    scalar[r] = DTensor::from_local(part.narrow(0, 0, 1).narrow(1, 0, 1).clone().view({}), groups,
                                    {Placement::partial()}, soon())
                    .full_tensor(groups, soon());
  });
  for (std::size_t r = 1; r < 5; ++r) {
    CHECK(same_bits(full[r], full[0]));
    CHECK(same_bits(scalar[r], scalar[0]));
  }
}

TEST_CASE("distribute_tensor gives each rank its part of what the mesh's first rank has") {
  RanksOnMesh ranks(DeviceMesh::from_ranks({5, 3, 1, 0, 2, 4}, {2, 3}, {"dp", "tp"}));
  const auto whole = Tensor::arange<double>(35).view({5, 7}).transpose(0, 1);
  for (const std::string to : {"S(0),S(1)", "R,S(-1)", "S(0),S(0)", "R,R", "P(sum),S(1)"}) {
    INFO(to);
    std::vector<Tensor> locals(6);
    std::vector<Strides> strides(6);
    std::vector<char> same_full(6);
    ranks.run([&](MeshGroups& groups) {
      const Tensor mine = groups.rank() == 5 ? whole : Tensor();
      const auto d = distribute_tensor(mine, groups, parse_placements(to), soon());
      locals[static_cast<std::size_t>(*groups.mesh().index_of(groups.rank()))] = d.to_local();
      const auto full = d.full_tensor(groups, soon());
      strides[static_cast<std::size_t>(groups.rank())] = full.strides();
      same_full[static_cast<std::size_t>(groups.rank())] = same_bits(full, whole);
    });
    const auto placements = normalized(parse_placements(to), 2);
    const auto got = whole_by_definition(ranks.mesh(), {7, 5}, placements, locals);
    REQUIRE(got);
    CHECK(*got == whole.to_vector<double>());
    CHECK(same_full == std::vector<char>(6, 1));
    CHECK(strides == std::vector<Strides>(6, {1, 7}));
  }
  const auto errors = ranks.errors([&](MeshGroups& groups) {
    const Tensor mine = groups.rank() == 5 ? Tensor() : whole;
    (void)distribute_tensor(mine, groups, parse_placements("R,R"), soon());
  });
  CHECK_THAT(errors[0], Catch::Matchers::Contains("rank 5") && Catch::Matchers::Contains("none"));
  CHECK(errors == std::vector<std::string>(6, errors[0]));
}

TEST_CASE("equal placements give the same local tensor, others memory of their own") {
  RanksOnMesh ranks(DeviceMesh::from_shape({2}));
  std::vector<char> shares(2);
  std::vector<char> own(2);
  ranks.run([&](MeshGroups& groups) {
    const auto r = static_cast<std::size_t>(groups.rank());
    const auto whole = Tensor::arange<float>(4);
    const auto d = DTensor::from_full(whole, groups.mesh(), groups.rank(), {Placement()});
    shares[r] = d.redistribute(groups, {Placement()}, soon()).to_local().identity() ==
                d.to_local().identity();
    const auto s = d.redistribute(groups, {Placement::shard(-1)}, soon());
    own[r] = s.to_local().storage() != d.to_local().storage() &&
             d.full_tensor(groups, soon()).storage() != d.to_local().storage();
  });
  CHECK(shares == std::vector<char>{1, 1});
  CHECK(own == std::vector<char>{1, 1});
}

TEST_CASE("groups of another mesh or rank are refused") {
  RanksOnMesh ranks(DeviceMesh::from_shape({2}, {"a"}));
  const auto other = DTensor::from_full(Tensor::arange<float>(4),
                                        DeviceMesh::from_shape({2}, {"b"}), 0, {Placement()});
  const auto errors =
      ranks.errors([&](MeshGroups& groups) { (void)other.full_tensor(groups, soon()); });
  CHECK_THAT(errors[0], Catch::Matchers::Contains("b=2") && Catch::Matchers::Contains("a=2"));
}

TEST_CASE("a peer that does not come is named as silent, and nothing hangs") {
  RanksOnMesh ranks(DeviceMesh::from_shape({2}));
  constexpr auto kPatience = std::chrono::milliseconds(20);
  std::string thrown = "nothing";
  std::chrono::steady_clock::duration took{};
  ranks.run([&](MeshGroups& groups) {
    if (groups.rank() == 1) return;
    const auto d =
        DTensor::from_full(Tensor::arange<float>(4), groups.mesh(), 0, {Placement::shard(0)});
    const auto begin = std::chrono::steady_clock::now();
    try {
      (void)d.full_tensor(groups, Deadline::after(kPatience));
    } catch (const PeerSilent& e) {
      thrown = "silent: " + std::to_string(e.rank().value_or(-1));
    } catch (const std::exception& e) {
      thrown = e.what();
    }
    took = std::chrono::steady_clock::now() - begin;
  });
  CHECK(thrown == "silent: 1");
  CHECK(took >= kPatience);
  CHECK(took < std::chrono::seconds(10));
}
