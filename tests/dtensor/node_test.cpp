#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/dtensor/arithmetic.hpp>
#include <meshstage/dtensor/node.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/memory_kinds.hpp"
#include "tests/support/ranks_on_mesh.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

DTensor sharded_part(int rank,
                     const DeviceMesh& mesh = DeviceMesh::from_shape({2, 2}, {"dp", "tp"})) {
  const auto whole = Tensor::arange<float>(35).view({5, 7});
  return DTensor::from_full(whole, mesh, rank, parse_placements("S(0),S(1)"));
}

NodeRegistry registry_with(const DeviceMesh& mesh) {
  NodeRegistry registry;
  dtensor::register_nodes(registry, mesh);
  return registry;
}

Value decoded(const TestImage& image, const NodeRegistry& registry) {
  return decode_image(image.bytes(), std::make_shared<Storage>(image.memory), registry);
}

}  // namespace

MEMORY_KINDS_TEST(sharded_dtensor, "dtensor: sharded, after + 1 and * 2, values, spec and size") {
  RanksOnMesh ranks(DeviceMesh::from_shape({4}, {"world"}));
  std::vector<std::string> wrong(4);
  ranks.run([&](MeshGroups& groups) {
    auto& w = wrong[static_cast<std::size_t>(groups.rank())];
    auto weight = distribute_tensor(Tensor::arange<float>(32).view({16, 2}), groups,
                                    {Placement::shard(0)}, soon());
    weight = (weight + 1) * 2;
    const Dict state{{"layer", Dict{{"weight", dtensor::to_value(weight)}}}};
    StateDictStager stager(kind.options());
    const auto staged = stager.stage(state);
    const auto copy = dtensor::from_value(staged.at("layer").at("weight"));
    if (copy.to_local().is_pinned() != kind.pin()) w += "pinned ";
    if (copy.to_local().is_shared() != kind.share()) w += "shared ";
    if (!same_bits(copy.to_local(), weight.to_local())) w += "values ";
    if (!(copy.spec() == weight.spec())) w += "spec ";
    if (copy.shape() != Shape{16, 2} || copy.to_local().shape() != Shape{4, 2}) w += "size ";
    if (copy.rank() != groups.rank()) w += "rank ";
    if (copy.to_local().storage() == weight.to_local().storage()) w += "not copied ";
    if (compare(state, staged)) w += compare(state, staged)->describe();
    // The staged one is as good as any.
    const auto full = copy.full_tensor(groups, soon());
    for (std::int64_t i = 0; i < 32; ++i) {
      if (full.data<float>()[i] != static_cast<float>(2 * (i + 1))) w += "full ";
    }
  });
  CHECK(wrong == std::vector<std::string>(4));
}

TEST_CASE("an image gives back a DTensor of the owner's part, also to another rank of the mesh") {
  const auto part = sharded_part(3);
  const Dict state{{"w", dtensor::to_value(part)}, {"lr", 0.1}};
  const auto image = make_image(state);
  const auto back = decoded(image, registry_with(part.mesh()));
  const auto again = dtensor::from_value(back.at("w"));
  CHECK(again.spec() == part.spec());
  CHECK(again.rank() == 3);
  CHECK(same_bits(again.to_local(), part.to_local()));
  CHECK_FALSE(compare(state, back));
  CHECK_FALSE(compare_structure(image.bytes(), state));
}

TEST_CASE("an image is restored into a DTensor in place; another part is another structure") {
  const auto part = sharded_part(1);
  const auto image = make_image(Dict{{"w", dtensor::to_value(part)}});
  const auto target = part * 0;
  Dict state{{"w", dtensor::to_value(target)}};
  restore_into(image.bytes(), state);
  CHECK(same_bits(target.to_local(), part.to_local()));
  CHECK(dtensor::from_value(state.at("w")).to_local().storage() == target.to_local().storage());
  // Ranks 1 and 3 have parts of unlike size, 0 and 1 of like size on another mesh.
  Dict other{{"w", dtensor::to_value(sharded_part(3))}};
  CHECK_THROWS_AS(restore_into(image.bytes(), other), StructureMismatch);
  const auto swapped = DeviceMesh::from_ranks({1, 0, 2, 3}, {2, 2}, {"dp", "tp"});
  Dict elsewhere{{"w", dtensor::to_value(sharded_part(0, swapped))}};
  CHECK_THROWS_AS(restore_into(image.bytes(), elsewhere), StructureMismatch);
}

TEST_CASE("without its mesh a DTensor is no DTensor: unregistered opaque, else a mismatch") {
  const auto part = sharded_part(1);
  const auto image = make_image(Dict{{"w", dtensor::to_value(part)}});
  const auto opaque = decoded(image, {});
  CHECK_THROWS_WITH(dtensor::from_value(opaque.at("w")),
                    Contains("\"dtensor\"") && Contains("registered"));
  CHECK_THROWS_WITH(dtensor::from_value(Value(3)), Contains("int 3"));
  CHECK_THROWS_AS(decoded(image, registry_with(DeviceMesh::from_shape({4}))), StructureMismatch);
  CHECK_THROWS_WITH(
      decoded(image, registry_with(DeviceMesh::from_ranks({1, 0, 2, 3}, {2, 2}, {"dp", "tp"}))),
      Contains("order"));
  NodeRegistry several;
  dtensor::register_nodes(several, {DeviceMesh::from_shape({4}), part.mesh()});
  CHECK(dtensor::from_value(decoded(image, several).at("w")).mesh() == part.mesh());
}

TEST_CASE("a DTensor's node takes only what fits, and keeps sharing") {
  const auto part = sharded_part(0);
  const auto node = std::make_shared<dtensor::DTensorNode>(part);
  CHECK_THROWS_AS(node->rebuild({}), InvalidArgument);
  CHECK_THROWS_AS(node->rebuild({Value(1)}), InvalidArgument);
  CHECK_THROWS_AS(node->rebuild({Tensor::zeros({3, 3}, DType::kF32)}), InvalidArgument);
  CHECK_THROWS_AS(node->assign({Tensor::zeros({3, 4}, DType::kF64)}), InvalidArgument);
  const auto fresh = Tensor::zeros({3, 4}, DType::kF32);
  CHECK(node->assign({fresh}));
  CHECK(node->tensor().to_local().identity() == fresh.identity());
  const Value value = dtensor::to_value(part);
  const Dict tied{{"in", value}, {"out", value}};
  const auto staged = StateDictStager().stage(tied);
  CHECK(staged.at("in").as<NodePtr>() == staged.at("out").as<NodePtr>());
}

TEST_CASE("what is recorded of a DTensor is not believed: each field damaged is CorruptData") {
  const auto part = sharded_part(0);
  const auto registry = registry_with(part.mesh());
  const auto node = std::make_shared<dtensor::DTensorNode>(part);
  const Value good = node->auxiliary();
  const std::vector<Node::Child> children = node->children();
  CHECK(registry.make("dtensor", children, good) != nullptr);
  const auto damaged = [&](const char* key, const Value& value) {
    Dict aux = good.as<Dict>().clone();
    aux.set(key, value);
    return aux;
  };
  const std::vector<Value> wrong{Value(),
                                 Value(7),
                                 List{1},
                                 damaged("rank", 4),
                                 damaged("rank", "0"),
                                 damaged("rank", 1LL << 40),
                                 damaged("placements", "S(0)"),
                                 damaged("placements", "S(0),S(2)"),
                                 damaged("placements", "?"),
                                 damaged("shape", List{5, -7}),
                                 damaged("shape", List{5, 1LL << 62}),
                                 damaged("shape", List{}),
                                 damaged("shape", List{9, 7}),
                                 damaged("stride", List{1, 1}),
                                 damaged("stride", List{7}),
                                 damaged("stride", 0),
                                 damaged("mesh", Value())};
  for (const Value& aux : wrong) {
    CHECK_THROWS_AS(registry.make("dtensor", children, aux), CorruptData);
  }
  CHECK_THROWS_AS(registry.make("dtensor", {}, good), CorruptData);
  CHECK_THROWS_AS(registry.make("dtensor", {{"local", Value(1)}}, good), CorruptData);
  CHECK_THROWS_AS(registry.make("dtensor", {{"other", children[0].value}}, good), CorruptData);
}
