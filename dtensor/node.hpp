#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tree/boxes.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/dtensor/dtensor.hpp>

namespace meshstage::dtensor {

/// A DTensor in a state dict: its local tensor is the child "local". Its auxiliary data are mesh
/// (shape, names and hash), rank, its coordinate, placements, global shape and stride.
///
///   Dict state{{"weight", dtensor::to_value(weight)}};
///   DTensor weight = dtensor::from_value(state.at("weight"));
class MESHSTAGE_API DTensorNode final : public Node {
 public:
  explicit DTensorNode(DTensor tensor);
  [[nodiscard]] const DTensor& tensor() const noexcept { return tensor_; }

  [[nodiscard]] std::string type_name() const override;
  [[nodiscard]] std::vector<Child> children() const override;
  [[nodiscard]] Value auxiliary() const override { return auxiliary_; }
  /// Throws InvalidArgument unless there is one child, a tensor of the local dtype and shape.
  [[nodiscard]] NodePtr rebuild(std::vector<Value> children) const override;
  bool assign(const std::vector<Value>& children) override;

 private:
  DTensorNode(DTensor tensor, Value auxiliary);
  [[nodiscard]] DTensor with_children(const std::vector<Value>& children) const;
  DTensor tensor_;
  Value auxiliary_;
};

[[nodiscard]] MESHSTAGE_API Value to_value(DTensor tensor);
/// Throws InvalidArgument if the value is no DTensor.
[[nodiscard]] MESHSTAGE_API DTensor from_value(const Value& value);

/// Lets a registry decode DTensors on this mesh, or on any of several (a mesh and slices of it).
/// A DTensor on another mesh gives StructureMismatch; data that cannot be a DTensor give
/// CorruptData.
MESHSTAGE_API void register_nodes(NodeRegistry& registry, const DeviceMesh& mesh);
MESHSTAGE_API void register_nodes(NodeRegistry& registry, std::vector<DeviceMesh> meshes);

/// Lets `readers` read DTensors of any mesh, also of a job that is over: see core/reshard. A
/// DTensor with a partial placement is StructureMismatch.
MESHSTAGE_API void register_boxes(BoxReaders& readers);

}  // namespace meshstage::dtensor
