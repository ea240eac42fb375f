#include <meshstage/dtensor/shared_tensors.hpp>

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include <meshstage/core/tree/path.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/mesh/replicated.hpp>

namespace meshstage::dtensor {
namespace {

// Collects the paths of the local tensors of DTensors that `counts` accepts.
class Finder {
 public:
  explicit Finder(std::function<bool(const DTensor&)> counts) : counts_(std::move(counts)) {}

  void visit(const Value& value) {
    if (const auto* list = value.get_if<List>()) {
      items(*list);
    } else if (const auto* tuple = value.get_if<Tuple>()) {
      items(*tuple);
    } else if (const auto* dict = value.get_if<Dict>()) {
      for (const auto& [key, item] : *dict) below(key, item);
    } else if (const auto* node = value.get_if<NodePtr>()) {
      const auto* tensor = dynamic_cast<const DTensorNode*>(node->get());
      const bool found = tensor != nullptr && counts_(tensor->tensor());
      for (const auto& child : (*node)->children()) {
        path_.push(child.name);
        if (found) paths_.push_back(path_.text());
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

  const std::function<bool(const DTensor&)> counts_;
  Path path_;
  std::vector<std::string> paths_;
};

}  // namespace

SharedTensors shared_tensors(const DeviceMesh& mesh, const FailureDomains& domains,
                             DomainLevel level) {
  const auto ranks =
      std::make_shared<const std::vector<std::vector<int>>>(shared_ranks(mesh, domains, level));
  SharedTensors out;
  out.ranks = *ranks;
  out.paths = [ranks, domains, level](const Value& state, int owner, int at) {
    if (owner < 0 || owner >= domains.world_size()) return std::vector<std::string>();
    const auto& known = (*ranks)[static_cast<std::size_t>(owner)];
    if (!std::binary_search(known.begin(), known.end(), at)) return std::vector<std::string>();
    Finder finder([&](const DTensor& tensor) {
      return (tensor.rank() == owner || tensor.rank() == at) && tensor.to_local().numel() > 0 &&
             shared_at(tensor.mesh(), tensor.placements(), domains, owner, level) == at;
    });
    finder.visit(state);
    return finder.take();
  };
  return out;
}

}  // namespace meshstage::dtensor
