#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/sharded/node.hpp>

#include "tests/sharded/shards.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

const Shape kWhole{6, 4};
const std::vector<ShardMetadata> kShards{{{0, 0}, {2, 4}, {1, {DeviceType::kCuda, 1}}},
                                         {{2, 0}, {1, 4}, {0, kCpu}},
                                         {{3, 0}, {3, 4}, {1, {DeviceType::kCuda, 1}}}};

ShardedTensor shards_of_rank(int rank) {
  std::vector<Tensor> tensors;
  for (const auto& s : shards_at(kShards, kWhole, rank)) tensors.push_back(s.tensor);
  return ShardedTensor::from_metadata(tensors, {kWhole, DType::kF32, kShards}, rank);
}

Value decoded(const TestImage& image, int rank) {
  NodeRegistry registry;
  sharded::register_nodes(registry, rank);
  return decode_image(image.bytes(), std::make_shared<Storage>(image.memory), registry);
}

bool same_shards(const ShardedTensor& a, const ShardedTensor& b) {
  if (a.local_shards().size() != b.local_shards().size()) return false;
  for (std::size_t i = 0; i < a.local_shards().size(); ++i) {
    if (!same_bits(a.local_shards()[i].tensor, b.local_shards()[i].tensor)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("a staged ShardedTensor has copies of the shards and the same metadata") {
  const auto tensor = shards_of_rank(1);
  const Dict state{{"embedding", sharded::to_value(tensor)}, {"step", 7}};
  StateDictStager stager;
  const auto staged = stager.stage(state);
  CHECK_FALSE(compare(state, staged));
  const auto copy = sharded::from_value(staged.at("embedding"));
  CHECK(copy.metadata() == tensor.metadata());
  CHECK(copy.local_shards()[1].metadata == kShards[2]);
  CHECK(same_shards(copy, tensor));
  CHECK(copy.local_shards()[0].tensor.storage() != tensor.local_shards()[0].tensor.storage());
}

TEST_CASE("a replica has the holder's rank in the placement, and keeps the owner's") {
  const auto tensor = shards_of_rank(1);
  const auto image = make_image(Dict{{"e", sharded::to_value(tensor)}});
  const auto held = sharded::from_value(decoded(image, 3).at("e"));
  CHECK(held.holder() == 3);
  CHECK(held.owner() == 1);
  CHECK(held.metadata() == tensor.metadata());
  REQUIRE(held.local_shards().size() == 2);
  CHECK(held.local_shards()[1].metadata == ShardMetadata{{3, 0}, {3, 4}, {3, kCpu}});
  CHECK(same_shards(held, tensor));
  CHECK(held.to_string() == "ShardedTensor(F32[6, 4] in 3 shards; rank 1 has 2, held by rank 3)");
  // Back at its owner it is what it was, also by way of the holder's state dict.
  const auto again = make_image(decoded(image, 3));
  CHECK_FALSE(compare_structure(again.bytes(), Dict{{"e", sharded::to_value(tensor)}}));
  const auto back = sharded::from_value(decoded(again, 1).at("e"));
  CHECK(back.holder() == 1);
  CHECK(back.local_shards()[0].metadata == kShards[0]);
  CHECK(same_shards(back, tensor));
}

TEST_CASE("an image is restored into a ShardedTensor in place; other shards are a mismatch") {
  const auto tensor = shards_of_rank(1);
  const auto image = make_image(Dict{{"e", sharded::to_value(tensor)}});
  const auto target =
      tensor.with_tensors({Tensor::zeros({2, 4}, DType::kF32), Tensor::zeros({3, 4}, DType::kF32)});
  Dict state{{"e", sharded::to_value(target)}};
  restore_into(image.bytes(), state);
  CHECK(same_shards(target, tensor));
  Dict other{{"e", sharded::to_value(shards_of_rank(0))}};
  CHECK_THROWS_AS(restore_into(image.bytes(), other), StructureMismatch);
}

TEST_CASE("a rank without shards has a node without children") {
  const auto none = shards_of_rank(2);
  const auto image = make_image(Dict{{"e", sharded::to_value(none)}});
  const auto back = sharded::from_value(decoded(image, 2).at("e"));
  CHECK(back.local_shards().empty());
  CHECK(back.metadata() == none.metadata());
}

TEST_CASE("a ShardedTensor's node takes only what fits, and is no other node") {
  const auto node = std::make_shared<sharded::ShardedTensorNode>(shards_of_rank(0));
  CHECK_THROWS_AS(node->rebuild({}), InvalidArgument);
  CHECK_THROWS_AS(node->rebuild({Value(1)}), InvalidArgument);
  CHECK_THROWS_AS(node->rebuild({Tensor::zeros({4, 1}, DType::kF32)}), InvalidArgument);
  CHECK_THROWS_AS(node->assign({Tensor::zeros({1, 4}, DType::kF16)}), InvalidArgument);
  const auto fresh = Tensor::zeros({1, 4}, DType::kF32);
  CHECK(node->assign({fresh}));
  CHECK(node->tensor().local_shards()[0].tensor.identity() == fresh.identity());
  CHECK_THROWS_WITH(sharded::from_value(Value("text")), Contains("not a ShardedTensor"));
  const Value opaque =
      std::make_shared<OpaqueNode>("sharded_tensor", std::vector<Node::Child>{}, Value());
  CHECK_THROWS_WITH(sharded::from_value(opaque), Contains("registered"));
}

TEST_CASE(
    "what is recorded of a ShardedTensor is not believed: each field damaged is CorruptData") {
  NodeRegistry registry;
  sharded::register_nodes(registry, 1);
  const auto node = std::make_shared<sharded::ShardedTensorNode>(shards_of_rank(1));
  const Value good = node->auxiliary();
  const auto children = node->children();
  CHECK(registry.make("sharded_tensor", children, good) != nullptr);
  const auto damaged = [&](const char* key, const Value& value) {
    Dict aux = good.as<Dict>().clone();
    aux.set(key, value);
    return aux;
  };
  const auto with_shard = [&](const Value& shard) {
    List shards = good.at("shards")->as<List>().clone();
    shards[1] = shard;
    return damaged("shards", shards);
  };
  const std::vector<Value> wrong{Value(),
                                 List{},
                                 damaged("owner", 0),
                                 damaged("owner", -1),
                                 damaged("owner", "1"),
                                 damaged("dtype", "F31"),
                                 damaged("dtype", "F64"),
                                 damaged("shape", List{7, 4}),
                                 damaged("shape", List{6, -4}),
                                 damaged("shape", List{1LL << 40, 1LL << 40}),
                                 damaged("shards", List{}),
                                 damaged("shards", 3),
                                 with_shard(Value()),
                                 with_shard(Tuple{List{2, 0}, List{1, 4}}),
                                 with_shard(Tuple{List{2, 0}, List{1, 4}, "rank:0"}),
                                 with_shard(Tuple{List{2, 0}, List{1, 4}, "rank:1/cpu"}),
                                 with_shard(Tuple{List{1, 0}, List{1, 4}, "rank:0/cpu"}),
                                 with_shard(Tuple{List{2, 0}, List{1}, "rank:0/cpu"})};
  for (std::size_t i = 0; i < wrong.size(); ++i) {
    INFO(i);
    CHECK_THROWS_AS(registry.make("sharded_tensor", children, wrong[i]), CorruptData);
  }
  CHECK_THROWS_AS(registry.make("sharded_tensor", {}, good), CorruptData);
  auto named = children;
  named[0].name = "first";
  CHECK_THROWS_AS(registry.make("sharded_tensor", named, good), CorruptData);
}
