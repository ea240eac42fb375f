#include "tools/snapshot/entries.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tree/node.hpp>

#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

constexpr std::uint64_t kMaxListedBytes = std::uint64_t{1} << 30U;
constexpr std::size_t kMaxHexBytes = 4096;

class Lister {
 public:
  explicit Lister(Repeat repeat) : repeat_(repeat) {}

  std::vector<Entry> run(const Value& state) {
    if (state.is_container() || state.kind() == ValueKind::kNode) {
      children(state, 0);
    } else {
      place(state, "", 0);
    }
    return std::move(entries_);
  }

 private:
  /// Lists `value` at the current path, then what is inside.
  void place(const Value& value, std::string label, std::size_t depth) {
    Entry entry;
    entry.depth = depth;
    entry.label = std::move(label);
    entry.path = path_.text();
    entry.plain = plain_;
    entry.kind = to_string(value.kind());
    listed_ += sizeof(Entry) + 2 * entry.path.size() + entry.label.size();
    if (listed_ > kMaxListedBytes) {
      throw CorruptData("the paths of this snapshot take more than " + size_text(kMaxListedBytes) +
                        ", one object is held in too many places");
    }
    const void* identity = nullptr;
    if (const auto* tensor = value.get_if<Tensor>()) {
      describe_tensor(entry, *tensor);
      identity = tensor->identity();
    } else if (const auto* list = value.get_if<List>()) {
      entry.children = list->size();
      identity = list->identity();
    } else if (const auto* tuple = value.get_if<Tuple>()) {
      entry.children = tuple->size();
      identity = tuple->identity();
    } else if (const auto* dict = value.get_if<Dict>()) {
      entry.children = dict->size();
      identity = dict->identity();
    } else if (const auto* node = value.get_if<NodePtr>()) {
      entry.node_type = (*node)->type_name();
      entry.children = (*node)->children().size();
      identity = node->get();
    }
    bool inside = true;
    if (identity != nullptr) {
      const auto [first, fresh] = objects_.emplace(identity, entry.path);
      if (!fresh) {
        entry.same_as = first->second;
        // The same tensor object may have other attributes here.
        inside = repeat_ == Repeat::kAlways || value.get_if<Tensor>() != nullptr;
      }
    }
    entry.value = value;
    entries_.push_back(std::move(entry));
    if (inside) children(value, depth + 1);
  }

  void describe_tensor(Entry& entry, const Tensor& tensor) {
    entry.dtype = to_string(tensor.dtype());
    for (const auto d : tensor.shape()) entry.shape.push_back(static_cast<std::uint64_t>(d));
    if (!tensor.is_contiguous()) entry.strides = tensor.strides();
    entry.offset = tensor.storage_offset();
    entry.bytes = tensor.nbytes();
    entry.storage_bytes = tensor.storage().nbytes();
    const auto [at, fresh] =
        storages_.emplace(tensor.storage().identity(), std::pair{storages_.size(), entry.path});
    entry.storage = at->second.first;
    if (!fresh) entry.shares_with = at->second.second;
  }

  void children(const Value& value, std::size_t depth) {
    if (const auto* dict = value.get_if<Dict>()) {
      entries_of(*dict, depth);
    } else if (const auto* list = value.get_if<List>()) {
      elements_of(*list, depth);
    } else if (const auto* tuple = value.get_if<Tuple>()) {
      elements_of(*tuple, depth);
    } else if (const auto* node = value.get_if<NodePtr>()) {
      for (const auto& child : (*node)->children()) below(Key(child.name), child.value, depth);
    } else if (const Dict* attributes = value.attributes()) {
      path_.push_attributes();
      const auto before = add_plain("%@");
      entries_of(*attributes, depth);
      plain_.resize(before);
      path_.pop();
    }
  }

  void entries_of(const Dict& dict, std::size_t depth) {
    for (const auto& [key, value] : dict) below(key, value, depth);
  }

  void elements_of(const Sequence& sequence, std::size_t depth) {
    for (std::size_t i = 0; i < sequence.size(); ++i) below(Key(i), sequence[i], depth);
  }

  void below(const Key& key, const Value& value, std::size_t depth) {
    const bool attribute = in_attributes();
    path_.push(key);
    const auto text = key.is_string() ? key.string() : std::to_string(key.integer());
    const auto before = add_plain(text);
    place(value, (attribute ? "@" : "") + text, depth);
    plain_.resize(before);
    path_.pop();
  }

  [[nodiscard]] bool in_attributes() const {
    return path_.text() == "%@" || path_.text().ends_with(".%@");
  }

  /// Returns the length to go back to.
  std::size_t add_plain(const std::string& part) {
    const auto before = plain_.size();
    if (path_.depth() > 1) plain_ += '.';
    plain_ += part;
    return before;
  }

  Repeat repeat_;
  Path path_;
  std::string plain_;
  std::vector<Entry> entries_;
  std::uint64_t listed_ = 0;
  std::unordered_map<const void*, std::string> objects_;
  std::unordered_map<const void*, std::pair<std::size_t, std::string>> storages_;
};

std::string hex(const Bytes& bytes, std::size_t max) {
  std::string text;
  for (std::size_t i = 0; i < std::min(max, bytes.size()); ++i) {
    text += fmt::format("{:02x}", std::to_integer<unsigned>(bytes[i]));
  }
  return text;
}

}  // namespace

std::string Entry::describe() const {
  if (is_tensor()) {
    auto text = fmt::format("{}[{}]", dtype, fmt::join(shape, ", "));
    if (!strides.empty()) text += fmt::format(" strides [{}]", fmt::join(strides, ", "));
    if (offset != 0) text += fmt::format(" offset {}", offset);
    return text;
  }
  if (!node_type.empty()) return "node " + printable(node_type, 60);
  if (const auto* text = value.get_if<std::string>()) {
    return "string \"" + printable(*text, 60) + "\"";
  }
  return printable(value.describe(), 80);
}

std::string Entry::note() const {
  std::string text;
  if (same_as && !value.is_scalar()) {
    text = "same " + kind + " as " + (same_as->empty() ? "(root)" : printable(*same_as));
  } else if (shares_with) {
    text = "shares storage with " + printable(*shares_with);
  }
  if (lender)
    text += fmt::format("{}not here: borrowed from rank {}", text.empty() ? "" : "; ", *lender);
  return text;
}

nlohmann::ordered_json Entry::to_json() const {
  nlohmann::ordered_json json{{"path", path}, {"kind", kind}};
  if (is_tensor()) {
    json["dtype"] = dtype;
    json["shape"] = shape;
    if (!strides.empty()) json["strides"] = strides;
    if (offset != 0) json["offset"] = offset;
    json["bytes"] = bytes;
    json["storage"] = storage;
    json["storage_bytes"] = storage_bytes;
    if (shares_with) json["shares_storage_with"] = *shares_with;
    if (lender) json["lender"] = *lender;
  } else if (value.is_scalar()) {
    json["value"] = scalar_json(value);
  } else {
    if (!node_type.empty()) json["type"] = node_type;
    json["size"] = children;
  }
  if (same_as) json["same_object_as"] = *same_as;
  return json;
}

std::vector<Entry> list_entries(const Value& state, Repeat repeat) {
  return Lister(repeat).run(state);
}

namespace {

/// Says of the tensors of a replica which are not in it.
void mark_borrowed(std::vector<Entry>& entries, const Snapshot& snapshot) {
  std::unordered_map<const std::byte*, int> ranks;
  for (const auto& part : snapshot.borrowed) {
    for (const auto& piece : part.pieces)
      ranks.emplace(snapshot.bytes.data() + piece.offset, part.rank);
  }
  for (auto& entry : entries) {
    const auto* tensor = entry.value.get_if<Tensor>();
    if (tensor == nullptr || tensor->storage().nbytes() == 0) continue;
    if (const auto it = ranks.find(tensor->storage().data()); it != ranks.end())
      entry.lender = it->second;
  }
}

}  // namespace

std::vector<Entry> list_entries(const Snapshot& snapshot, Repeat repeat) {
  if (snapshot.image) {
    auto entries = list_entries(snapshot.state(), repeat);
    if (snapshot.without_borrowed()) mark_borrowed(entries, snapshot);
    return entries;
  }
  const Value state = snapshot.state();
  const auto& tensors = state.as<Dict>();
  std::vector<Entry> entries;
  entries.reserve(tensors.size());
  const auto add = [&](const SafetensorsEntry& e) {
    Entry entry;
    entry.label = entry.path = entry.plain = e.name;
    entry.kind = to_string(ValueKind::kTensor);
    entry.dtype = e.dtype;
    entry.shape = e.shape;
    entry.bytes = entry.storage_bytes = e.end - e.begin;
    entry.storage = entries.size();
    const Value* const tensor = tensors.find(e.name);
    if (tensor == nullptr) {
      throw CorruptData(snapshot.name + " changed while it was read: \"" + printable(e.name) +
                        "\" is not in it any more");
    }
    entry.value = *tensor;
    entries.push_back(std::move(entry));
  };
  for (const auto& e : snapshot.index.entries()) add(e);
  for (const auto& file : snapshot.files) {
    for (const auto& e : file.index.entries()) add(e);
  }
  return entries;
}

void keep_below(std::vector<Entry>& entries, const std::string& path) {
  if (path.empty()) return;
  const std::string inside = path + ".";
  const std::string first = entries.empty() ? "" : entries.front().path;
  const auto is_below = [&](const std::string& name) {
    return name == path || name.starts_with(inside);
  };
  std::erase_if(entries, [&](const Entry& e) { return !is_below(e.path) && !is_below(e.plain); });
  if (entries.empty()) {
    throw make_error<NotFound>(
        "there is nothing at \"" + printable(path) + "\"" +
            (first.empty() ? "" : "; paths look like \"" + printable(first) + "\""),
        {}, {}, path);
  }
  const auto depth = entries.front().depth;
  for (auto& e : entries) e.depth -= std::min(depth, e.depth);
}

nlohmann::ordered_json scalar_json(const Value& scalar) {
  switch (scalar.kind()) {
    case ValueKind::kBool:
      return scalar.as<bool>();
    case ValueKind::kInt:
      return scalar.as<std::int64_t>();
    case ValueKind::kDouble: {
      const double number = scalar.as<double>();
      if (std::isfinite(number)) return number;
      return std::isnan(number) ? "NaN" : number > 0 ? "Infinity" : "-Infinity";
    }
    case ValueKind::kString:
      return scalar.as<std::string>();
    case ValueKind::kBytes: {
      const auto& bytes = scalar.as<Bytes>();
      nlohmann::ordered_json json{{"bytes", bytes.size()}, {"hex", hex(bytes, kMaxHexBytes)}};
      if (bytes.size() > kMaxHexBytes) json["cut"] = true;
      return json;
    }
    default:
      return nullptr;
  }
}

bool plain_names_do(const std::vector<Entry>& entries) {
  std::unordered_set<std::string_view> names;
  for (const auto& e : entries) {
    if (!e.is_tensor() && !e.value.is_scalar()) continue;
    if (!names.insert(e.plain).second) return false;
    if (!e.is_tensor()) continue;
    if (e.plain.empty() || e.plain == "__metadata__" || e.plain.starts_with("__meshstage__") ||
        printable(e.plain, e.plain.size()) != e.plain) {
      return false;
    }
  }
  return true;
}

std::string values_text(const nlohmann::ordered_json& values) {
  return values.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace meshstage::tools
