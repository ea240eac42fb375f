#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
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

/// A path that some ranks of the old job have and others have not.
struct OfSome {
  std::string path;
  bool taken = false;  ///< This rank's state has it, or each rank has it for itself.
};

/// All that Assembly::write() does.
struct AssemblyPlan {
  Value state;
  std::vector<BoxTarget> targets;
  std::vector<ScalarWrite> scalars;
  std::deque<NodeWrite> nodes;  ///< Places point into them.
  std::vector<NodeWrite*> inner_first;
  std::vector<std::string> warnings;
  std::vector<OfSome> of_some;
};

/// A rank of the new job, and how it reads the old one.
struct NewRank {
  int rank = 0;
  int world_size = 1;
  /// Of the values that all old ranks should have alike this rank compares the world_size-th part.
  bool compares_its_share = false;
  /// Called with each part of an old tensor before its elements are read; null for none.
  std::function<void(const Tensor&)> prove = {};
  /// The rank only finds out what it has to read: the elements may be anything.
  bool only_asks = false;

  [[nodiscard]] bool compares(int old_rank) const {
    return !compares_its_share || old_rank % world_size == rank;
  }
  /// `old`, whose elements may be read from now on.
  [[nodiscard]] const Tensor& proven(const Tensor& old) const {
    if (prove) prove(old);
    return old;
  }
  /// False if two old tensors have the same elements, and while the rank only asks.
  [[nodiscard]] bool differ(const Tensor& a, const Tensor& b) const {
    const Tensor& x = proven(a);
    const Tensor& y = proven(b);
    return !only_asks && !same_bits(x, y);
  }
};

/// Bytes from the begin of the tensor's first element to the end of its last one. It has elements.
[[nodiscard]] inline std::uint64_t spanned_bytes(const Tensor& tensor) {
  std::uint64_t last = 0;
  for (std::size_t d = 0; d < tensor.dim(); ++d) {
    last += static_cast<std::uint64_t>((tensor.size(d) - 1) * tensor.strides()[d]);
  }
  return (last + 1) * size_of(tensor.dtype());
}

/// Throws StructureMismatch naming two paths whose tensors share memory in `state` and are to be
/// filled with other bytes there.
void check_overlaps(const Value& state, const std::vector<BoxTarget>& targets);

/// StructureMismatch about a path: "model.w: why".
[[nodiscard]] inline StructureMismatch mismatch(const std::string& path, const std::string& why) {
  return make_error<StructureMismatch>((path.empty() ? "(root)" : path) + ": " + why, {}, {}, path);
}

}  // namespace meshstage::detail
