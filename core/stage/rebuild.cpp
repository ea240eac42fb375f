#include <list>
#include <unordered_map>

#include <meshstage/core/stage/plan_impl.hpp>
#include <meshstage/core/tree/walk.hpp>

namespace meshstage::detail {
namespace {

class Rebuilder {
 public:
  Rebuilder(std::span<const Tensor> from, std::span<const Tensor> to) {
    tensors_.reserve(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) tensors_.emplace(from[i].identity(), &to[i]);
  }

  // `state` matched a plan: it has no cycle and is not too deep.
  Value rebuild(const Value& state) {
    if (state.is_scalar()) return state;
    if (const auto* tensor = state.get_if<Tensor>()) {
      const auto& staged = *tensors_.at(tensor->identity());
      const Dict* attributes = state.attributes();
      return attributes == nullptr ? Value(staged)
                                   : Value(staged, rebuild(Value(*attributes)).as<Dict>());
    }
    const void* identity = container_identity(state);
    if (const auto it = done_.find(identity); it != done_.end()) return it->second;
    Value result = rebuild_container(state);
    done_.emplace(identity, result);
    return result;
  }

 private:
  Value rebuild_container(const Value& state) {
    if (const auto* dict = state.get_if<Dict>()) {
      Dict result;
      for (const auto& [key, value] : *dict) result.set(key, rebuild(value));
      return result;
    }
    if (const auto* list = state.get_if<List>()) return List(rebuild_all(*list));
    if (const auto* tuple = state.get_if<Tuple>()) return Tuple(rebuild_all(*tuple));
    const auto& node = *state.as<NodePtr>();
    const auto& children = kept_.emplace_back(node.children());
    std::vector<Value> rebuilt;
    for (const auto& child : children) rebuilt.push_back(rebuild(child.value));
    return node.rebuild(std::move(rebuilt));
  }
  std::vector<Value> rebuild_all(const Sequence& sequence) {
    std::vector<Value> result;
    result.reserve(sequence.size());
    for (const auto& value : sequence) result.push_back(rebuild(value));
    return result;
  }
  std::unordered_map<const void*, const Tensor*> tensors_;
  std::unordered_map<const void*, Value> done_;
  std::list<std::vector<Node::Child>> kept_;
};

}  // namespace

Value replace_tensors(const Value& state, std::span<const Tensor> from,
                      std::span<const Tensor> to) {
  return Rebuilder(from, to).rebuild(state);
}

}  // namespace meshstage::detail
