// Meshes, shapes, placements and shards out of a seed, against plain slicing.
#include <meshstage/core/tensor/box.hpp>

#include "tests/dtensor/random_cases.hpp"
#include "tests/reshard/old_job.hpp"
#include "tests/sharded/shards.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

constexpr std::uint32_t kPairs = 400;

/// One side of a pair: the same tensor on some ranks, in one of the ways that a state has it.
struct Side {
  int ranks = 1;
  std::function<Value(const Tensor& whole, int rank)> value;
  /// "" if what the value holds is what slicing makes of the whole tensor.
  std::function<std::string(const Value& value, const Tensor& whole, int rank)> wrong;
};

Side dtensor_side(Chance& chance, const Shape& shape) {
  const DeviceMesh mesh = chance.mesh(12);
  Placements placements = chance.placements(mesh.ndim(), shape.size());
  for (auto& p : placements) {
    if (p.is_partial()) p = Placement::replicate();
  }
  const bool strided = chance.below(3) == 0;
  return {static_cast<int>(mesh.size()),
          [=](const Tensor& whole, int rank) -> Value {
            return dtensor::to_value(placed(whole, mesh, placements, rank, strided));
          },
          [=](const Value& value, const Tensor& whole, int rank) -> std::string {
            const Box box = local_shard(mesh, rank, whole.shape(), placements);
            const bool good = same_bits(dtensor::from_value(value).to_local(), cut(whole, box));
            return good ? "" : to_string(placements) + " on " + mesh.to_string();
          }};
}

Side sharded_side(Chance& chance, const Shape& shape) {
  const int ranks = static_cast<int>(chance.between(1, 7));
  std::mt19937 engine(static_cast<unsigned>(chance.below(1'000'000)));
  const auto shards = random_shards(engine, shape, ranks);
  const auto of_rank = [=](const Tensor& whole, int rank) {
    std::vector<Tensor> tensors;
    for (const auto& s : shards) {
      if (s.placement.rank == rank) tensors.push_back(cut(whole, {s.sizes, s.offsets}));
    }
    return tensors;
  };
  return {ranks,
          [=](const Tensor& whole, int rank) -> Value {
            ShardedTensorMetadata metadata{whole.shape(), whole.dtype(), shards};
            return sharded::to_value(
                ShardedTensor::from_metadata(of_rank(whole, rank), std::move(metadata), rank));
          },
          [=](const Value& value, const Tensor& whole, int rank) -> std::string {
            const auto expected = of_rank(whole, rank);
            const auto tensor = sharded::from_value(value);
            for (std::size_t i = 0; i < expected.size(); ++i) {
              if (!same_bits(tensor.local_shards()[i].tensor, expected[i])) return "a shard";
            }
            return "";
          }};
}

Side plain_side(Chance& chance) {
  return {static_cast<int>(chance.between(1, 4)),
          [](const Tensor& whole, int) -> Value { return whole.clone(); },
          [](const Value& value, const Tensor& whole, int) -> std::string {
            return same_bits(value.as<Tensor>(), whole) ? "" : "a whole tensor";
          }};
}

Side any_side(Chance& chance, const Shape& shape) {
  const auto kind = chance.below(8);
  if (kind == 0) return plain_side(chance);
  return kind <= 5 ? dtensor_side(chance, shape) : sharded_side(chance, shape);
}

}  // namespace

TEST_CASE(
    "random pairs of meshes, shapes, placements and shards: each rank has what slicing gives") {
  for (std::uint32_t seed = 0; seed < kPairs; ++seed) {
    INFO("seed " << seed);
    Chance chance(seed);
    const Shape shape = chance.shape();
    const auto count = element_count(shape);
    const Tensor whole = chance.below(2) == 0 ? Tensor::arange<float>(count).view(shape)
                                              : Tensor::arange<std::int16_t>(count).view(shape);
    const Tensor nothing = Tensor::zeros(shape, whole.dtype());
    const Side before = any_side(chance, shape);
    const Side after = any_side(chance, shape);
    const auto old = old_job(before.ranks, [&](int rank) {
      return Dict{{"w", before.value(whole, rank)}, {"step", 7}};
    });
    for (int rank = 0; rank < after.ranks; ++rank) {
      INFO("rank " << rank << " of " << after.ranks << ", from " << before.ranks);
      Dict state{{"w", after.value(nothing, rank)}, {"step", 0}};
      const Value w = state.at("w");
      assemble(old, state, rank, after.ranks);
      CHECK(after.wrong(w, whole, rank) == "");  // in place: the node of before has them
      CHECK(state.at("step").as<int>() == 7);
    }
  }
}
