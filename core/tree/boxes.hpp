#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/tree/node.hpp>

namespace meshstage {

/// A box of a tensor, with its elements: `tensor` has the box's shape and any strides.
struct TensorBox {
  std::vector<std::int64_t> offset;  ///< Of the first element, in the whole tensor, elements.
  Tensor tensor;
};

/// The part that one rank stores of a tensor that lies on several ranks.
struct TensorBoxes {
  Shape shape;  ///< Of the whole tensor, elements.
  DType dtype = DType::kF32;
  std::vector<TensorBox> boxes;
  /// Names the group of ranks that has the tensor. Two groups may have two tensors.
  std::uint64_t group = 0;
  /// Names the copy of the tensor to which these boxes belong. All ranks of a group with an equal
  /// `copy` have the whole tensor together.
  std::vector<std::int64_t> copy;
};

/// Reads boxes out of nodes. A reader uses only the parts of a node that an image keeps: its
/// children and its auxiliary data. So it can read nodes of a job with another world size, without
/// that job's meshes. A value: copy it, extend it, pass it on.
///
///     BoxReaders readers;
///     dtensor::register_boxes(readers);
///     sharded::register_boxes(readers);
class MESHSTAGE_API BoxReaders {
 public:
  /// The parts may come from bytes that are hostile: a reader checks them and throws CorruptData.
  /// It throws StructureMismatch, with the remedy, for a tensor that is no set of boxes.
  using Reader =
      std::function<TensorBoxes(const std::vector<Node::Child>& children, const Value& auxiliary)>;
  /// Throws InvalidArgument if the name is taken.
  void add(const std::string& type_name, Reader reader);
  [[nodiscard]] bool contains(std::string_view type_name) const;
  /// Nothing for a type that has no reader. Throws what the reader throws, and CorruptData for
  /// boxes that are of another dtype or do not lie within the whole tensor.
  [[nodiscard]] std::optional<TensorBoxes> read(const Node& node) const;

 private:
  std::map<std::string, Reader, std::less<>> readers_;
};

}  // namespace meshstage
