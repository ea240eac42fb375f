#pragma once
#include <string>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tree/boxes.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/sharded/sharded_tensor.hpp>

namespace meshstage::sharded {

/// A ShardedTensor in a state dict: its local shards' tensors are the children "0", "1", ... Its
/// auxiliary data are the global shape, the dtype, all shards' metadata and the owner (but not the
/// holder).
class MESHSTAGE_API ShardedTensorNode final : public Node {
 public:
  explicit ShardedTensorNode(ShardedTensor tensor);
  [[nodiscard]] const ShardedTensor& tensor() const noexcept { return tensor_; }

  [[nodiscard]] std::string type_name() const override;
  [[nodiscard]] std::vector<Child> children() const override;
  [[nodiscard]] Value auxiliary() const override { return auxiliary_; }
  /// Throws InvalidArgument unless the children are tensors of the shards' dtype and sizes.
  [[nodiscard]] NodePtr rebuild(std::vector<Value> children) const override;
  bool assign(const std::vector<Value>& children) override;

 private:
  ShardedTensorNode(ShardedTensor tensor, Value auxiliary);
  [[nodiscard]] ShardedTensor with_children(const std::vector<Value>& children) const;
  ShardedTensor tensor_;
  Value auxiliary_;
};

[[nodiscard]] MESHSTAGE_API Value to_value(ShardedTensor tensor);
/// Throws InvalidArgument if the value is no ShardedTensor.
[[nodiscard]] MESHSTAGE_API ShardedTensor from_value(const Value& value);

/// Lets a registry decode ShardedTensors for `rank`, the rank of the process that decodes: another
/// rank's shards become a replica held by `rank`. Data that cannot be a ShardedTensor give
/// CorruptData.
MESHSTAGE_API void register_nodes(NodeRegistry& registry, int rank);

/// Lets `readers` read ShardedTensors of any group, also of a job that is over: see core/reshard.
MESHSTAGE_API void register_boxes(BoxReaders& readers);

}  // namespace meshstage::sharded
