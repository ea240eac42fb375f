#include <meshstage/dtensor/borrowed_tensors.hpp>

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

BorrowedTensors borrowed_tensors(const DeviceMesh& mesh, const FailureDomains& domains,
                                 DomainLevel level) {
  const auto lenders =
      std::make_shared<const std::vector<std::vector<int>>>(possible_lenders(mesh, domains, level));
  BorrowedTensors out;
  out.lenders = *lenders;
  out.paths = [lenders, domains, level](const Value& state, int borrower, int lender) {
    if (borrower < 0 || borrower >= domains.world_size()) return std::vector<std::string>();
    const auto& known = (*lenders)[static_cast<std::size_t>(borrower)];
    if (!std::binary_search(known.begin(), known.end(), lender)) return std::vector<std::string>();
    Finder finder([&](const DTensor& tensor) {
      return (tensor.rank() == borrower || tensor.rank() == lender) &&
             tensor.to_local().numel() > 0 &&
             lender_of(tensor.mesh(), tensor.placements(), domains, borrower, level) == lender;
    });
    finder.visit(state);
    return finder.take();
  };
  return out;
}

}  // namespace meshstage::dtensor
