#include <meshstage/core/stage/plan_impl.hpp>

namespace meshstage::detail {
namespace {

class Rebuilder {
 public:
  Rebuilder(const PlannedState& plan, std::span<const Tensor> tensors)
      : plan_(plan), tensors_(tensors) {
    done_.resize(plan.containers.size());
  }

  Value rebuild(const Value& state) {
    const auto& item = plan_.items[item_++];
    if (state.is_scalar()) return state;
    if (state.kind() == ValueKind::kTensor) {
      const Dict* attributes = state.attributes();
      if (attributes == nullptr) return tensors_[item.index];
      const Value rebuilt = item.attributes ? rebuild(Value(*attributes)) : Value(Dict());
      return {tensors_[item.index], rebuilt.as<Dict>()};
    }
    if (item.again) return done_[item.index];
    Value result = rebuild_container(state);
    done_[item.index] = result;
    return result;
  }

 private:
  Value rebuild_container(const Value& state) {
    if (const auto* dict = state.get_if<Dict>()) {
      Dict result = Dict::with_keys_of(*dict);
      auto* entry = result.begin();
      for (const auto& [key, value] : *dict) (entry++)->second = rebuild(value);
      return result;
    }
    if (const auto* list = state.get_if<List>()) return List(rebuild_all(*list));
    if (const auto* tuple = state.get_if<Tuple>()) return Tuple(rebuild_all(*tuple));
    const auto& node = *state.as<NodePtr>();
    std::vector<Value> rebuilt;
    for (const auto& child : node.children()) rebuilt.push_back(rebuild(child.value));
    return node.rebuild(std::move(rebuilt));
  }
  std::vector<Value> rebuild_all(const Sequence& sequence) {
    std::vector<Value> result;
    result.reserve(sequence.size());
    for (const auto& value : sequence) result.push_back(rebuild(value));
    return result;
  }

  const PlannedState& plan_;
  std::span<const Tensor> tensors_;
  std::vector<Value> done_;  // containers and nodes, by index
  std::size_t item_ = 0;
};

}  // namespace

Value replace_tensors(const PlannedState& plan, const Value& state,
                      std::span<const Tensor> tensors) {
  return Rebuilder(plan, tensors).rebuild(state);
}

}  // namespace meshstage::detail
