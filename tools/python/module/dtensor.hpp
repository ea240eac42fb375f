#pragma once
#include <nanobind/nanobind.h>

#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/tree/node.hpp>

namespace meshstage::python {

/// DTensorLayout and what makes PlacedTensors, which read_tree() takes.
void bind_dtensor(nanobind::module_& module);

/// The node of a DTensor of which nobody here knows how it lies on its mesh. It has the child
/// "local"; its auxiliary data name the placements.
inline constexpr char kUnplacedType[] = "dtensor.unplaced";

/// A DTensor of another library.
struct PlacedTensor {
  NodePtr node;  ///< Of dtensor's type, or of kUnplacedType.
  [[nodiscard]] Tensor local() const { return node->children().front().value.as<Tensor>(); }
};

}  // namespace meshstage::python
