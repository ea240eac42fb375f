#include <meshstage/core/tree/path.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/mesh/replicated.hpp>

namespace meshstage::dtensor {
namespace {

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
      const bool same = tensor != nullptr && is_twin(tensor->tensor());
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
  [[nodiscard]] bool is_twin(const DTensor& tensor) const {
    return same_shard(tensor.mesh(), tensor.placements(), tensor.rank(), peer_);
  }
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
