#pragma once
#include <deque>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/box.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::detail {

/// A part of a target's box, and the old elements that belong there.
struct BoxCopy {
  Box part;
  Tensor from;
};

/// A box of the new state, and what fills it.
struct BoxTarget {
  std::string path;
  Tensor tensor;
  Box box;
  std::vector<BoxCopy> copies;
};

struct ScalarWrite {
  Value* place = nullptr;
  Value value;
};

/// A node whose children are taken over, wherever the state holds it.
struct NodeWrite {
  NodePtr node;
  std::vector<Value> children;
  std::vector<Value*> places;
};

/// All that Assembly::write() does.
struct AssemblyPlan {
  Value state;
  std::vector<BoxTarget> targets;
  std::vector<ScalarWrite> scalars;
  std::deque<NodeWrite> nodes;  ///< Places point into them.
  std::vector<NodeWrite*> inner_first;
  std::vector<std::string> warnings;
};

/// Throws StructureMismatch naming two paths whose tensors share memory in `state` and are to be
/// filled with other bytes there.
void check_overlaps(const Value& state, const std::vector<BoxTarget>& targets);

/// StructureMismatch about a path: "model.w: why".
[[nodiscard]] inline StructureMismatch mismatch(const std::string& path, const std::string& why) {
  return make_error<StructureMismatch>((path.empty() ? "(root)" : path) + ": " + why, {}, {}, path);
}

}  // namespace meshstage::detail
