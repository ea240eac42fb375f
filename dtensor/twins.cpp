#include <meshstage/core/tree/path.hpp>
#include <meshstage/dtensor/node.hpp>

namespace meshstage::dtensor {
namespace {

bool same_shard(const DTensor& tensor, int peer) {
  const auto here = tensor.mesh().coordinate(tensor.rank());
  const auto there = tensor.mesh().coordinate(peer);
  if (!here || !there) return false;
  for (std::size_t d = 0; d < here->size(); ++d) {
    if ((*here)[d] != (*there)[d] && !tensor.placements()[d].is_replicate()) return false;
  }
  return true;
}

class Finder {
 public:
  explicit Finder(int peer) : peer_(peer) {}

  void visit(const Value& value) {
    if (const auto* list = value.get_if<List>()) {
      items(*list);
    } else if (const auto* tuple = value.get_if<Tuple>()) {
      items(*tuple);
    } else if (const auto* dict = value.get_if<Dict>()) {
      for (const auto& [key, item] : *dict) below(key, item);
    } else if (const auto* node = value.get_if<NodePtr>()) {
      const auto* tensor = dynamic_cast<const DTensorNode*>(node->get());
      const bool same = tensor != nullptr && same_shard(tensor->tensor(), peer_);
      for (const auto& child : (*node)->children()) {
        path_.push(child.name);
        if (same) paths_.push_back(path_.text());
        if (tensor == nullptr) visit(child.value);
        path_.pop();
      }
    }
  }
  [[nodiscard]] std::vector<std::string> take() { return std::move(paths_); }

 private:
  template <class Items>
  void items(const Items& list) {
    std::int64_t i = 0;
    for (const Value& item : list) below(i++, item);
  }
  void below(const Key& key, const Value& item) {
    path_.push(key);
    visit(item);
    path_.pop();
  }

  const int peer_;
  Path path_;
  std::vector<std::string> paths_;
};

}  // namespace

std::vector<std::string> twins(const Value& state, int peer) {
  Finder finder(peer);
  finder.visit(state);
  return finder.take();
}

}  // namespace meshstage::dtensor
