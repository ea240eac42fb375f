// Checks a state dict against a plan and takes what a copy needs, in one walk. The usual case, the
// same objects as at compile time, costs one comparison of pointers for each tensor and container;
// other objects of the same structure cost a comparison of what they are, and a sort at the end
// that finds sharing the plan does not have.
#include <algorithm>

#include <meshstage/core/image/values.hpp>
#include <meshstage/core/stage/plan_impl.hpp>
#include <meshstage/core/tensor/device_memory.hpp>
#include <meshstage/core/tree/compare.hpp>

namespace meshstage::detail {
namespace {

bool distinct(std::vector<const void*> identities) {
  std::sort(identities.begin(), identities.end());
  return std::adjacent_find(identities.begin(), identities.end()) == identities.end();
}

class Matcher {
 public:
  explicit Matcher(const PlannedState& plan) : plan_(plan) {
    sources_.resize(plan.source_bytes.size());
    source_.tensors.resize(plan.tensors.size());
    containers_.resize(plan.containers.size());
  }

  std::optional<StagingSource> run(const Value& state) {
    if (!visit(state) || item_ != plan_.items.size()) return std::nullopt;
    if (changed_ && !(all_distinct() && all_on_their_devices())) return std::nullopt;
    if (!group()) return std::nullopt;
    return std::move(source_);
  }

 private:
  bool visit(const Value& value) {
    // The plan's items bound the walk, so that a cycle ends it too.
    if (item_ == plan_.items.size()) return false;
    const auto& item = plan_.items[item_++];
    if (value.is_scalar()) {
      if (item.kind != ValueKind::kNull) return false;
      encode_scalar(source_.values, value);
      return true;
    }
    if (value.kind() != item.kind) return false;
    if (const auto* tensor = value.get_if<Tensor>()) {
      if (!visit_tensor(*tensor, item)) return false;
      const Dict* attributes = value.attributes();
      const bool has = attributes != nullptr && !attributes->empty();
      return has == item.attributes && (!has || visit(Value(*attributes)));
    }
    if (const auto* dict = value.get_if<Dict>()) {
      return visit_identity(dict->identity(), item) && (item.again || visit_dict(*dict, item));
    }
    if (const auto* list = value.get_if<List>()) {
      return visit_identity(list->identity(), item) && (item.again || visit_all(*list, item));
    }
    if (const auto* tuple = value.get_if<Tuple>()) {
      return visit_identity(tuple->identity(), item) && (item.again || visit_all(*tuple, item));
    }
    const auto& node = *value.as<NodePtr>();
    return visit_identity(&node, item) && (item.again || visit_node(node, item));
  }

  bool visit_identity(const void* identity, const FlatItem& item) {
    if (item.again) return containers_[item.index] == identity;
    containers_[item.index] = identity;
    changed_ |= identity != plan_.containers[item.index];
    return true;
  }

  bool visit_tensor(const Tensor& tensor, const FlatItem& item) {
    auto& seen = source_.tensors[item.index];
    if (item.again) return seen.identity() == tensor.identity();
    const auto& planned = plan_.tensors[item.index];
    if (tensor.identity() != planned.identity) {
      changed_ = true;
      if (tensor.dtype() != planned.dtype || tensor.shape() != planned.shape ||
          tensor.strides() != planned.strides || tensor.storage_offset() != planned.source_offset ||
          tensor.device() != planned.device ||
          tensor.storage().nbytes() != plan_.source_bytes[planned.source]) {
        return false;
      }
    }
    seen = tensor;
    auto& storage = sources_[planned.source];
    if (!storage.valid()) {
      storage = tensor.storage();
      external_ |= storage.traits().external;
      return true;
    }
    return storage == tensor.storage();
  }

  bool visit_dict(const Dict& dict, const FlatItem& item) {
    if (dict.size() != item.count) return false;
    for (const auto& [key, value] : dict) {
      if (key_ == plan_.keys.size() || !(plan_.keys[key_++] == key) || !visit(value)) return false;
    }
    return true;
  }

  bool visit_all(const Sequence& sequence, const FlatItem& item) {
    if (sequence.size() != item.count) return false;
    return std::all_of(sequence.begin(), sequence.end(),
                       [this](const Value& value) { return visit(value); });
  }

  bool visit_node(const Node& node, const FlatItem& item) {
    if (node_ == plan_.nodes.size()) return false;
    const auto& planned = plan_.nodes[node_++];
    if (node.type_name() != planned.type_name || compare(planned.auxiliary, node.auxiliary()))
      return false;
    // Kept until the end: what children() made for us must not lend its identity to others.
    const auto& children =
        *kept_.emplace_back(std::make_unique<std::vector<Node::Child>>(node.children()));
    if (children.size() != item.count) return false;
    for (const auto& [name, value] : children) {
      if (key_ == plan_.keys.size() || !(plan_.keys[key_++] == Key(name)) || !visit(value))
        return false;
    }
    return true;
  }

  bool all_distinct() {
    std::vector<const void*> tensors, storages;
    for (const auto& t : source_.tensors) tensors.push_back(t.identity());
    for (const auto& s : sources_) storages.push_back(s.identity());
    return distinct(std::move(tensors)) && distinct(std::move(storages)) && distinct(containers_);
  }

  // Memory at other addresses than the plan's is asked for; what is wrong with it is for who
  // compiles a plan to say.
  bool all_on_their_devices() {
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      const auto& storage = sources_[i];
      if (storage.data() != plan_.source_begins[i] && !is_device_memory(storage)) return false;
    }
    return true;
  }

  // The storages of the image, from those of the state; false if they share memory otherwise.
  bool group() {
    const bool grouped = plan_.storage_bytes.size() != plan_.source_bytes.size();
    if (!grouped && (!changed_ || !external_)) {
      source_.storages = std::move(sources_);
      return true;
    }
    auto groups = group_storages(std::move(sources_));
    if (groups.places != plan_.places) return false;
    for (std::size_t i = 0; i < groups.groups.size(); ++i) {
      if (groups.groups[i].nbytes() != plan_.storage_bytes[i]) return false;
    }
    source_.storages = std::move(groups.groups);
    return true;
  }

  const PlannedState& plan_;
  StagingSource source_;
  std::vector<Storage> sources_;  // of the state
  std::vector<const void*> containers_;
  std::vector<std::unique_ptr<std::vector<Node::Child>>> kept_;
  std::size_t item_ = 0, key_ = 0, node_ = 0;
  bool changed_ = false, external_ = false;
};

}  // namespace

PlannedState remember(FlatState flat) {
  PlannedState plan;
  for (const auto& t : flat.tensors) {
    plan.tensors.push_back({t.tensor.dtype(), t.tensor.shape(), t.tensor.strides(),
                            t.tensor.device(), t.tensor.storage_offset(), t.source, t.offset,
                            t.storage, t.tensor.identity(), t.tensor.weak()});
  }
  for (const auto& s : flat.sources) {
    plan.source_bytes.push_back(s.nbytes());
    plan.source_begins.push_back(s.data());
  }
  plan.places = std::move(flat.places);
  for (const auto& s : flat.storages) {
    plan.storage_bytes.push_back(s.nbytes());
    plan.storages.emplace_back(s);
  }
  plan.items = std::move(flat.items);
  plan.keys = std::move(flat.keys);
  plan.nodes = std::move(flat.nodes);
  plan.containers = std::move(flat.containers);
  plan.holds = std::move(flat.holds);
  return plan;
}

std::optional<StagingSource> match(const PlannedState& plan, const Value& state) {
  return Matcher(plan).run(state);
}

}  // namespace meshstage::detail
