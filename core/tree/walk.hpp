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

}  // namespace meshstage::detail
