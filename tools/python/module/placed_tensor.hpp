#pragma once
#include <meshstage/core/tree/node.hpp>

namespace meshstage::python {

/// A DTensor or ShardedTensor of another library: this rank's tensors, and how the whole lies on
/// its ranks. read_tree() takes it.
struct PlacedTensor {
  NodePtr node;  ///< All its children are tensors.
};

}  // namespace meshstage::python
