#pragma once
#include <algorithm>
#include <vector>

#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/path.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::detail {

/// The state of a depth-first walk: the path and the containers that are open. So a cycle, or a
/// tree that is too deep, is refused with its path instead of overflowing the stack.
class Walk {
 public:
  [[nodiscard]] const Path& path() const noexcept { return path_; }

  /// Runs `inside` below a part of the path.
  template <class F>
  void below(const Key& key, F&& inside) {
    path_.push(key);
    inside();
    path_.pop();
  }
  template <class F>
  void below_attributes(F&& inside) {
    path_.push_attributes();
    inside();
    path_.pop();
  }

  /// Marks a container as open while `inside` runs. Throws InvalidArgument on a cycle.
  template <class F>
  void open(const void* identity, F&& inside) {
    if (std::find(open_.begin(), open_.end(), identity) != open_.end()) {
      throw make_error<InvalidArgument>(
          path_.shown() + " contains itself; a state dict must not have a cycle", {}, {},
          path_.text());
    }
    if (open_.size() >= kMaxTreeDepth) {
      throw make_error<InvalidArgument>(
          path_.shown() + " is deeper than " + std::to_string(kMaxTreeDepth) + " levels", {}, {},
          path_.text());
    }
    open_.push_back(identity);
    inside();
    open_.pop_back();
  }

 private:
  Path path_;
  std::vector<const void*> open_;
};

/// identity() of a container or node; null for any other value.
inline const void* container_identity(const Value& value) {
  if (const auto* l = value.get_if<List>()) return l->identity();
  if (const auto* t = value.get_if<Tuple>()) return t->identity();
  if (const auto* d = value.get_if<Dict>()) return d->identity();
  if (const auto* n = value.get_if<NodePtr>()) return n->get();
  return nullptr;
}

/// Calls f(key, value) for each value directly below a container or a node; never for other values.
template <class F>
void for_each_below(const Value& value, F&& f) {
  if (const auto* dict = value.get_if<Dict>()) {
    for (const auto& [key, inner] : *dict) f(key, inner);
  } else if (const auto* node = value.get_if<NodePtr>()) {
    for (const auto& child : (*node)->children()) f(Key(child.name), child.value);
  } else {
    const Sequence* sequence = value.get_if<List>();
    if (sequence == nullptr) sequence = value.get_if<Tuple>();
    if (sequence == nullptr) return;
    for (std::size_t i = 0; i < sequence->size(); ++i) f(Key(i), (*sequence)[i]);
  }
}

}  // namespace meshstage::detail
