// meshstage diff: the first differences of two snapshots, by path.
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <set>
#include <utility>

#include <meshstage/core/tree/compare.hpp>

#include "tools/snapshot/entries.hpp"
#include "tools/snapshot/numbers.hpp"
#include "tools/snapshot/open.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

using What = Difference::What;

using Json = nlohmann::json;

/// A snapshot as export writes it: tensors and values by name.
struct Named {
  std::vector<std::pair<std::string, Entry>> tensors;
  std::optional<Json> values;  ///< Nothing if it is a file that was not exported.
};

/// Collects the first differences and counts the rest.
class Differ {
 public:
  Differ(bool values, std::size_t max) : max_(max) { options_.values = values; }

  /// Two trees, as they are.
  void compare_trees(const Value& a, const Value& b) {
    below(a, b);
    // Sharing and the order of keys are of the whole tree.
    CompareOptions whole = options_;
    whole.values = false;
    if (auto d = compare(a, b, whole);
        d && (d->what == What::kSharing || (d->what == What::kKeys && total_ == 0))) {
      add(std::move(*d));
    }
  }

  /// Two lists of tensors, by name; nothing but dtype, shape and elements counts.
  void compare_names(const Named& a, const Named& b) {
    options_.layout = options_.sharing = options_.attributes = false;
    std::map<std::string_view, const Entry*> right;
    for (const auto& [name, e] : b.tensors) right.emplace(name, &e);
    for (const auto& [name, e] : a.tensors) {
      const auto found = right.find(name);
      if (found == right.end()) {
        add({What::kKeys, name, e.describe(), "missing"});
        continue;
      }
      leaves(e.value, found->second->value, name);
      right.erase(found);
    }
    for (const auto& [name, e] : b.tensors) {
      if (right.contains(name)) add({What::kKeys, name, "missing", e.describe()});
    }
    // A file of another program has no values to compare with.
    if (a.values && b.values) compare_values(*a.values, *b.values);
  }

  [[nodiscard]] std::uint64_t total() const noexcept { return total_; }
  [[nodiscard]] const std::vector<Difference>& first() const noexcept { return first_; }

 private:
  void compare_values(const Json& a, const Json& b) {
    for (const auto& [name, value] : a.items()) {
      const auto other = b.find(name);
      if (other == b.end()) {
        add({What::kKeys, name, values_text(value), "missing"});
      } else if (options_.values && *other != value) {
        add({What::kValue, name, values_text(value), values_text(*other)});
      }
    }
    for (const auto& [name, value] : b.items()) {
      if (!a.contains(name)) add({What::kKeys, name, "missing", values_text(value)});
    }
  }

  void add(Difference d) {
    ++total_;
    if (first_.size() < max_) first_.push_back(std::move(d));
  }

  void below(const Value& a, const Value& b) {
    if (a.kind() == b.kind() && a.is_container()) {
      if (!seen_.emplace(identity(a), identity(b)).second) return;
      if (const auto* dict = a.get_if<Dict>()) return dicts(*dict, b.as<Dict>());
      if (const auto* list = a.get_if<List>()) return sequences(*list, b.as<List>());
      return sequences(a.as<Tuple>(), b.as<Tuple>());
    }
    leaves(a, b, path_.text());
  }

  static const void* identity(const Value& value) {
    if (const auto* dict = value.get_if<Dict>()) return dict->identity();
    if (const auto* list = value.get_if<List>()) return list->identity();
    return value.as<Tuple>().identity();
  }

  void dicts(const Dict& a, const Dict& b) {
    for (const auto& [key, value] : a) {
      path_.push(key);
      if (const Value* other = b.find(key)) {
        below(value, *other);
      } else {
        add({What::kKeys, path_.text(), value.describe(), "missing"});
      }
      path_.pop();
    }
    for (const auto& [key, value] : b) {
      if (a.contains(key)) continue;
      path_.push(key);
      add({What::kKeys, path_.text(), "missing", value.describe()});
      path_.pop();
    }
  }

  void sequences(const Sequence& a, const Sequence& b) {
    if (a.size() != b.size()) {
      add({What::kLength, path_.text(), count_text(a.size(), "element"),
           count_text(b.size(), "element")});
    }
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      path_.push(Key(i));
      below(a[i], b[i]);
      path_.pop();
    }
  }

  void leaves(const Value& a, const Value& b, const std::string& path) {
    CompareOptions leaf = options_;
    leaf.sharing = false;
    auto d = compare(a, b, leaf);
    if (!d) return;
    const auto* left = a.get_if<Tensor>();
    const auto* right = b.get_if<Tensor>();
    if (d->what == What::kValue && d->path.empty() && left != nullptr && right != nullptr) {
      const auto e = compare_elements(*left, *right);
      const auto where = left->dim() == 0 ? std::string() : e.index + " ";
      d->left = where + e.left;
      d->right = where + e.right;
      if (left->numel() > 1) {
        d->right += fmt::format("; {} of {} elements differ", e.count, left->numel());
        if (!std::isnan(e.largest)) d->right += fmt::format(", by up to {:.3g}", e.largest);
      }
    }
    d->path = path.empty() || d->path.empty() ? path + d->path : path + "." + d->path;
    add(std::move(*d));
  }

  CompareOptions options_;
  std::size_t max_;
  Path path_;
  std::set<std::pair<const void*, const void*>> seen_;
  std::uint64_t total_ = 0;
  std::vector<Difference> first_;
};

/// Plain safetensors files have no C128: there it is F64 with a last dimension of 2.
void as_pairs(Entry& entry) {
  const Tensor t = entry.value.as<Tensor>();
  if (t.dtype() != DType::kC128) return;
  Shape shape = t.shape();
  Strides strides = t.strides();
  for (auto& s : strides) s *= 2;
  shape.push_back(2);
  strides.push_back(1);
  entry.value = Tensor::on_storage(t.storage(), DType::kF64, std::move(shape), std::move(strides),
                                   t.storage_offset() * 2);
}

/// What an exported file says of the values; of another, nothing. The text is not trusted.
std::optional<Json> values_in(const Snapshot& snapshot) {
  const auto text = snapshot.find_metadata(kExportedValues);
  if (!text) return std::nullopt;
  auto values = Json::parse(*text, nullptr, false);
  return values.is_object() ? std::optional<Json>(std::move(values)) : std::nullopt;
}

Named named(const Snapshot& snapshot) {
  auto entries = list_entries(snapshot, Repeat::kAlways);
  const bool plain = !snapshot.image || plain_names_do(entries);
  Named result;
  if (!snapshot.image) result.values = values_in(snapshot);
  auto values = nlohmann::ordered_json::object();
  for (auto& e : entries) {
    auto name = plain ? e.plain : e.path;
    if (e.is_tensor()) {
      as_pairs(e);
      result.tensors.emplace_back(name.empty() ? "tensor" : std::move(name), std::move(e));
    } else if (e.value.is_scalar()) {
      values.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(std::move(name),
                                                                       scalar_json(e.value));
    }
  }
  // Through the text, as export does: what that cannot keep is no difference.
  if (snapshot.image) result.values = Json::parse(values_text(values));
  return result;
}

void print_text(const Differ& differ, const Snapshot& a, const Snapshot& b, bool values,
                std::ostream& out) {
  out << "left:  " << a.name << ": " << a.describe() << "\n";
  out << "right: " << b.name << ": " << b.describe() << "\n\n";
  for (const auto& d : differ.first()) out << printable(d.describe(), 1000) << "\n";
  if (differ.total() == 0) {
    out << (values ? "identical, every bit\n" : "the same structure\n");
  } else if (differ.total() == differ.first().size()) {
    out << "\n" << count_text(differ.total(), "difference") << "\n";
  } else {
    out << fmt::format("\nthe first {} of {} differences\n", differ.first().size(), differ.total());
  }
}

}  // namespace

int diff_snapshots(const DiffOptions& options, std::ostream& out) {
  const auto content = options.structure ? Content::kStructure : Content::kAll;
  const auto left = open_snapshot(options.left, options.places, content);
  const auto right = open_snapshot(options.right, options.places, content);
  Differ differ(!options.structure, options.max);
  if (left.image && right.image) {
    differ.compare_trees(left.state(), right.state());
  } else {
    differ.compare_names(named(left), named(right));
  }
  if (options.json) {
    nlohmann::ordered_json json{{"left", left.name},
                                {"right", right.name},
                                {"identical", differ.total() == 0},
                                {"differences", differ.total()},
                                {"first", nlohmann::ordered_json::array()}};
    for (const auto& d : differ.first()) {
      json["first"].push_back({{"path", d.path},
                               {"what", std::string(to_string(d.what))},
                               {"left", d.left},
                               {"right", d.right}});
    }
    print_json(out, json);
  } else {
    print_text(differ, left, right, !options.structure, out);
  }
  return differ.total() == 0 ? 0 : 1;
}

}  // namespace meshstage::tools
