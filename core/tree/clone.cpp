#include <unordered_map>

#include <meshstage/core/tree/walk.hpp>

namespace meshstage {
namespace {

class Cloner {
 public:
  Value clone(const Value& from) {
    if (from.is_scalar()) return from;
    if (const auto* tensor = from.get_if<Tensor>()) {
      const Dict* attributes = from.attributes();
      if (attributes == nullptr) return from;
      Value copy;
      walk_.below_attributes([&] { copy = clone(Value(*attributes)); });
      return Value(*tensor, copy.as<Dict>());
    }
    const void* identity = detail::container_identity(from);
    if (const auto it = done_.find(identity); it != done_.end()) return it->second;
    Value to;
    walk_.open(identity, [&] { to = clone_container(from); });
    done_.emplace(identity, to);
    return to;
  }

 private:
  Value clone_container(const Value& from) {
    if (const auto* dict = from.get_if<Dict>()) {
      Dict to = Dict::with_keys_of(*dict);
      auto* entry = to.begin();
      for (const auto& [key, value] : *dict) {
        walk_.below(key, [&] { (entry++)->second = clone(value); });
      }
      return to;
    }
    if (const auto* list = from.get_if<List>()) return List(clone_all(*list));
    if (const auto* tuple = from.get_if<Tuple>()) return Tuple(clone_all(*tuple));
    const auto& node = *from.as<NodePtr>();
    std::vector<Value> children;
    for (const auto& child : node.children()) {
      walk_.below(Key(child.name), [&] { children.push_back(clone(child.value)); });
    }
    return node.rebuild(std::move(children));
  }
  std::vector<Value> clone_all(const Sequence& from) {
    std::vector<Value> to;
    to.reserve(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) {
      walk_.below(Key(i), [&] { to.push_back(clone(from[i])); });
    }
    return to;
  }
  detail::Walk walk_;
  std::unordered_map<const void*, Value> done_;
};

}  // namespace

Value Value::clone() const { return Cloner().clone(*this); }

}  // namespace meshstage
