// Brings an image into a state dict that has the same structure, in place.
#include <unordered_map>
#include <unordered_set>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/restore_copies.hpp>
#include <meshstage/core/tensor/device_memory.hpp>
#include <meshstage/core/tree/tree_storages.hpp>
#include <meshstage/core/tree/walk.hpp>

namespace meshstage {
namespace {

std::optional<Difference> compare_decoded(const Value& image, const Value& state) {
  return compare(image, state,
                 {.values = false, .storage_bytes = true, .device = false, .key_order = false});
}

// Calls f with each tensor of a tree, more than once where it is shared; containers once.
template <class F>
void for_each_tensor(const Value& value, detail::Walk& walk, std::unordered_set<const void*>& seen,
                     const F& f) {
  if (const auto* tensor = value.get_if<Tensor>()) {
    f(*tensor, walk.path());
    if (const auto* attributes = value.attributes()) {
      walk.below_attributes([&] { for_each_tensor(Value(*attributes), walk, seen, f); });
    }
    return;
  }
  if (value.is_scalar() || !seen.insert(detail::container_identity(value)).second) return;
  detail::for_each_below(value, [&](const Key& key, const Value& inner) {
    walk.below(key, [&] { for_each_tensor(inner, walk, seen, f); });
  });
}

// Structures are equal: compare_decoded() found nothing.
class Assigner {
 public:
  explicit Assigner(const Value& to) : storages_(to) {}
  void assign(Value& to, const Value& from) {
    if (from.is_scalar()) {
      to = from;
      return;
    }
    if (const auto* tensor = from.get_if<Tensor>()) {
      const auto& source = tensor->storage();
      const auto& target = storages_.memory(to.as<Tensor>());
      if (target.nbytes() > 0 && copied_.insert(target.identity()).second)
        copies_.push_back({target, source.bytes()});
      // An empty dict of attributes on one side may be none on the other.
      if (const auto* attributes = from.attributes();
          attributes != nullptr && to.attributes() != nullptr) {
        Value inner = *to.attributes();
        assign(inner, Value(*attributes));
      }
      return;
    }
    if (const auto* node = from.get_if<NodePtr>()) return assign_node(to, **node);
    if (!done_.insert(detail::container_identity(to)).second) return;
    if (const auto* dict = from.get_if<Dict>()) {
      Dict target = to.as<Dict>();
      for (const auto& [key, value] : *dict) assign(*target.find(key), value);
    } else if (const auto* list = from.get_if<List>()) {
      List target = to.as<List>();
      assign_all(target, *list);
    } else {
      Tuple target = to.as<Tuple>();
      assign_all(target, from.as<Tuple>());
    }
  }

  /// What is left to do when everything else is assigned.
  [[nodiscard]] const std::vector<detail::RestoreCopy>& copies() const noexcept { return copies_; }

 private:
  void assign_all(Sequence& to, const Sequence& from) {
    for (std::size_t i = 0; i < from.size(); ++i) assign(to[i], from[i]);
  }

  void assign_node(Value& to, const Node& from) {
    const auto old = to.as<NodePtr>();
    if (const auto it = replaced_.find(old.get()); it != replaced_.end()) {
      to = it->second;
      return;
    }
    const auto theirs = from.children();
    const auto ours = old->children();
    std::vector<Value> children;
    for (std::size_t i = 0; i < ours.size(); ++i) {
      children.push_back(ours[i].value);
      assign(children.back(), theirs[i].value);
    }
    NodePtr now = old;
    if (!old->assign(children)) now = old->rebuild(std::move(children));
    kept_.push_back(old);  // its identity is a key of replaced_
    replaced_.emplace(old.get(), now);
    to = now;
  }

  detail::TreeStorages storages_;
  std::vector<detail::RestoreCopy> copies_;
  std::unordered_set<const void*> copied_, done_;
  std::unordered_map<const void*, NodePtr> replaced_;
  std::vector<NodePtr> kept_;
};

std::vector<Storage> storages_of(const Value& state) {
  std::vector<Storage> storages;
  detail::Walk walk;
  std::unordered_set<const void*> seen;
  for_each_tensor(state, walk, seen,
                  [&](const Tensor& tensor, const Path&) { storages.push_back(tensor.storage()); });
  return storages;
}

Value decode_for_reading(std::span<const std::byte> image) { return decode_image(image, nullptr); }

}  // namespace

std::optional<Difference> compare_structure(std::span<const std::byte> image, const Value& state) {
  return compare_decoded(decode_for_reading(image), state);
}

std::string describe_mismatch(const Difference& difference) {
  return difference.describe("the image", "the program's state dict");
}

void require_writable(const Value& state) {
  detail::Walk walk;
  std::unordered_set<const void*> seen;
  for_each_tensor(state, walk, seen, [](const Tensor& tensor, const Path& path) {
    constexpr auto kRefused = "; nothing can be restored into it";
    if (tensor.storage().traits().read_only) {
      throw make_error<InvalidState>(path.shown() + " is in read-only memory" + kRefused, {}, {},
                                     path.text());
    }
    try {
      detail::require_device_memory(tensor.storage(), path.text());
    } catch (const InvalidArgument& e) {
      throw make_error<InvalidState>(e.what() + std::string(kRefused), {}, {}, path.text());
    }
  });
}

void restore_into(std::span<const std::byte> image, Value& state, const RestoreOptions& options) {
  const Value decoded = decode_for_reading(image);
  if (const auto difference = compare_decoded(decoded, state)) {
    throw make_error<StructureMismatch>(
        "the image does not fit the state dict: " + describe_mismatch(*difference), {}, {},
        difference->path);
  }
  require_writable(state);
  const auto ready = detail::record_ready(storages_of(state), options.streams);
  Assigner assigner(state);
  assigner.assign(state, decoded);
  detail::restore_copies(assigner.copies(), ready, options);
}

void restore_into(std::span<const std::byte> image, Dict& state, const RestoreOptions& options) {
  Value value = state;
  restore_into(image, value, options);
}

}  // namespace meshstage
