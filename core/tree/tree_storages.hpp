#pragma once
#include <list>
#include <unordered_map>
#include <unordered_set>

#include <meshstage/core/tensor/storage_groups.hpp>
#include <meshstage/core/tree/walk.hpp>

namespace meshstage::detail {

/// The memory of each tensor of a tree, and the tensor's place in it. That is the tensor's storage,
/// unless external memory overlaps (see group_storages()). A cycle in the tree does no harm here;
/// other code refuses it.
class TreeStorages {
 public:
  explicit TreeStorages(const Value& tree) {
    collect(tree);
    if (!external_) {
      sources_.clear();
      return;
    }
    groups_ = group_storages(sources_);
  }
  TreeStorages(const TreeStorages&) = delete;
  TreeStorages& operator=(const TreeStorages&) = delete;

  /// The memory of `tensor`, which must be in the tree. Valid as long as this object and the
  /// tensor.
  [[nodiscard]] const Storage& memory(const Tensor& tensor) const {
    const auto* place = find(tensor);
    return place == nullptr ? tensor.storage() : groups_.groups[place->group];
  }
  /// Bytes from the begin of memory(tensor) to the tensor's first element.
  [[nodiscard]] std::uint64_t offset(const Tensor& tensor) const {
    const auto* place = find(tensor);
    return static_cast<std::uint64_t>(tensor.storage_offset()) * size_of(tensor.dtype()) +
           (place == nullptr ? 0 : place->offset);
  }

 private:
  [[nodiscard]] const GroupPlace* find(const Tensor& tensor) const {
    if (!external_) return nullptr;
    const auto it = index_.find(tensor.storage().identity());
    return it == index_.end() ? nullptr : &groups_.places[it->second];
  }
  void collect(const Value& value) {
    if (value.is_scalar()) return;
    if (const auto* tensor = value.get_if<Tensor>()) {
      if (index_.emplace(tensor->storage().identity(), sources_.size()).second) {
        sources_.push_back(tensor->storage());
        external_ |= tensor->storage().traits().external;
      }
      if (const auto* attributes = value.attributes()) collect(Value(*attributes));
      return;
    }
    if (!seen_.insert(container_identity(value)).second) return;
    // Deeper is refused elsewhere.
    if (++depth_ > kMaxTreeDepth) {
      --depth_;
      return;
    }
    if (const auto* dict = value.get_if<Dict>()) {
      for (const auto& [key, inner] : *dict) collect(inner);
    } else if (const auto* list = value.get_if<List>()) {
      for (const auto& inner : *list) collect(inner);
    } else if (const auto* tuple = value.get_if<Tuple>()) {
      for (const auto& inner : *tuple) collect(inner);
    } else {
      // Kept: what children() made for us must not lend its identity to others.
      const auto& children = kept_.emplace_back(value.as<NodePtr>()->children());
      for (const auto& child : children) collect(child.value);
    }
    --depth_;
  }

  std::vector<Storage> sources_;
  std::unordered_map<const void*, std::size_t> index_;
  std::unordered_set<const void*> seen_;
  std::list<std::vector<Node::Child>> kept_;
  StorageGroups groups_;
  std::size_t depth_ = 0;
  bool external_ = false;
};

}  // namespace meshstage::detail
