#include <meshstage/sharded/node.hpp>

#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::sharded {
namespace {

constexpr const char* kTypeName = "sharded_tensor";

List list_of(const std::vector<std::int64_t>& numbers) {
  List list;
  for (const std::int64_t n : numbers) list.push_back(n);
  return list;
}

std::vector<std::int64_t> numbers_of(const Value& value) {
  std::vector<std::int64_t> numbers;
  for (const Value& v : value.as<List>()) numbers.push_back(v.as<std::int64_t>());
  return numbers;
}

Value auxiliary_of(const ShardedTensor& tensor) {
  const ShardedTensorMetadata& metadata = tensor.metadata();
  List shards;
  for (const ShardMetadata& s : metadata.shards) {
    shards.push_back(Tuple{list_of(s.offsets), list_of(s.sizes), to_string(s.placement)});
  }
  return Dict{{"shape", list_of(metadata.shape)},
              {"dtype", to_string(metadata.dtype)},
              {"owner", tensor.owner()},
              {"shards", shards}};
}

/// Throws anything that reading a wrong Value throws; the caller makes it CorruptData.
ShardedTensor decoded(const std::vector<Node::Child>& children, const Value& auxiliary) {
  ShardedTensorMetadata metadata;
  metadata.shape = numbers_of(auxiliary.at("shape"));
  const auto& name = auxiliary.at("dtype")->as<std::string>();
  const auto dtype = dtype_from_string(name);
  if (!dtype) throw CorruptData("\"" + name + "\" is no dtype");
  metadata.dtype = *dtype;
  for (const Value& shard : auxiliary.at("shards")->as<List>()) {
    const auto& parts = shard.as<Tuple>();
    if (parts.size() != 3) throw CorruptData("a shard is described by three parts");
    metadata.shards.push_back({numbers_of(parts[0]), numbers_of(parts[1]),
                               parse_shard_placement(parts[2].as<std::string>())});
  }
  std::vector<Tensor> tensors;
  for (std::size_t i = 0; i < children.size(); ++i) {
    if (children[i].name != std::to_string(i)) {
      throw CorruptData("child " + std::to_string(i) + " is named \"" + children[i].name + "\"");
    }
    tensors.push_back(children[i].value.as<Tensor>());
  }
  return ShardedTensor::from_metadata(std::move(tensors), std::move(metadata),
                                      auxiliary.at("owner")->as<int>());
}

}  // namespace

ShardedTensorNode::ShardedTensorNode(ShardedTensor tensor)
    : tensor_(std::move(tensor)), auxiliary_(auxiliary_of(tensor_)) {}

ShardedTensorNode::ShardedTensorNode(ShardedTensor tensor, Value auxiliary)
    : tensor_(std::move(tensor)), auxiliary_(std::move(auxiliary)) {}

std::string ShardedTensorNode::type_name() const { return kTypeName; }

std::vector<Node::Child> ShardedTensorNode::children() const {
  std::vector<Child> children;
  for (const Shard& s : tensor_.local_shards()) {
    children.push_back({std::to_string(children.size()), s.tensor});
  }
  return children;
}

ShardedTensor ShardedTensorNode::with_children(const std::vector<Value>& children) const {
  std::vector<Tensor> tensors;
  for (const Value& child : children) tensors.push_back(child.as<Tensor>());
  return tensor_.with_tensors(std::move(tensors));
}

NodePtr ShardedTensorNode::rebuild(std::vector<Value> children) const {
  return std::shared_ptr<ShardedTensorNode>(
      new ShardedTensorNode(with_children(children), auxiliary_));
}

bool ShardedTensorNode::assign(const std::vector<Value>& children) {
  tensor_ = with_children(children);
  return true;
}

Value to_value(ShardedTensor tensor) {
  return std::make_shared<ShardedTensorNode>(std::move(tensor));
}

ShardedTensor from_value(const Value& value) {
  if (const auto* node = value.get_if<NodePtr>()) {
    if (const auto* t = dynamic_cast<const ShardedTensorNode*>(node->get())) return t->tensor();
    throw InvalidArgument("this is a node of type \"" + (*node)->type_name() +
                          "\", not a ShardedTensor; was the type registered where it was decoded?");
  }
  throw InvalidArgument("this is " + value.describe() + ", not a ShardedTensor");
}

void register_nodes(NodeRegistry& registry, int rank) {
  registry.add(
      kTypeName,
      [rank](const std::vector<Node::Child>& children, const Value& auxiliary) -> NodePtr {
        try {
          return std::make_shared<ShardedTensorNode>(decoded(children, auxiliary).held_by(rank));
        } catch (const Error& e) {
          throw CorruptData(
              std::string("the recorded parts of a ShardedTensor do not fit together: ") +
              e.what());
        }
      });
}

void register_boxes(BoxReaders& readers) {
  readers.add(kTypeName, [](const std::vector<Node::Child>& children, const Value& auxiliary) {
    try {
      const ShardedTensor tensor = decoded(children, auxiliary);
      TensorBoxes result{tensor.shape(), tensor.dtype(), {}, 0, {}};
      for (const Shard& shard : tensor.local_shards()) {
        result.boxes.push_back({shard.metadata.offsets, shard.tensor});
      }
      return result;
    } catch (const Error& e) {
      throw CorruptData(std::string("what is recorded of a ShardedTensor makes none: ") + e.what());
    }
  });
}

}  // namespace meshstage::sharded
