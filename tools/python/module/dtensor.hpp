#pragma once
#include <nanobind/nanobind.h>

#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/tree/node.hpp>

namespace meshstage::python {

/// DTensorLayout and PlacedTensor, for bind_tree()'s readers.
void bind_dtensor(nanobind::module_& module);

/// A DTensor of another library, as read_tree() takes it.
struct PlacedTensor {
  NodePtr node;
  [[nodiscard]] Tensor local() const { return node->children().front().value.as<Tensor>(); }
};

}  // namespace meshstage::python
