#include <algorithm>
#include <bit>
#include <unordered_map>

#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/image/values.hpp>
#include <meshstage/core/tree/walk.hpp>

namespace meshstage::detail {
namespace {

std::string hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const auto b : bytes) {
    text += kDigits[std::to_integer<std::size_t>(b) >> 4U];
    text += kDigits[std::to_integer<std::size_t>(b) & 15U];
  }
  return text;
}

class Flattener {
 public:
  FlatState run(const Value& state) {
    visit(state);
    // The structure's own object is one level more.
    if (json_depth(flat_.tree) + 1 > kMaxJsonDepth) refuse_depth(deepest_path_);
    group();
    return std::move(flat_);
  }

 private:
  // Each visit returns how many levels of containers it found, which is bounded also where objects
  // met before make a tree deeper than the path to it.
  std::size_t visit(const Value& value) {
    if (value.is_scalar()) {
      flat_.items.push_back({});
      flat_.tree += '0';
      encode_scalar(flat_.values, value);
      return 0;
    }
    if (const auto* tensor = value.get_if<Tensor>())
      return visit_tensor(*tensor, value.attributes());
    return visit_container(value);
  }

  std::size_t visit_tensor(const Tensor& tensor, const Dict* attributes) {
    const auto next = static_cast<std::uint32_t>(flat_.tensors.size());
    const auto [it, added] = tensors_.try_emplace(tensor.identity(), next);
    if (added) {
      const auto [s, fresh] = storages_.try_emplace(
          tensor.storage().identity(), static_cast<std::uint32_t>(flat_.sources.size()));
      if (fresh) flat_.sources.push_back(tensor.storage());
      flat_.tensors.push_back({tensor, s->second, 0, 0, walk_.path().text()});
    }
    const bool has = attributes != nullptr && !attributes->empty();
    flat_.items.push_back({ValueKind::kTensor, !added, has, it->second, 0});
    flat_.tree += "{\"t\":" + std::to_string(it->second);
    std::size_t height = 0;
    if (has) {
      flat_.tree += ",\"a\":";
      walk_.below_attributes([&] { height = visit_container(Value(*attributes)); });
    }
    flat_.tree += '}';
    return height;
  }

  // Which storages are one memory is known when all are.
  void group() {
    auto groups = group_storages(flat_.sources);
    flat_.storages = std::move(groups.groups);
    flat_.places = std::move(groups.places);
    for (auto& t : flat_.tensors) {
      const auto& place = flat_.places[t.source];
      const auto width = size_of(t.tensor.dtype());
      if (place.offset % width != 0) {
        throw make_error<InvalidArgument>(
            (t.path.empty() ? std::string("the tensor") : t.path) +
                ": its external memory begins " + std::to_string(place.offset) +
                " bytes into memory of another tensor, which is no " +
                "multiple of its elements' " + std::to_string(width) +
                " bytes; wrap that memory once, from an aligned address",
            {}, {}, t.path);
      }
      t.storage = place.group;
      t.offset = t.tensor.storage_offset() + static_cast<std::int64_t>(place.offset / width);
    }
  }

  std::size_t visit_container(const Value& value) {
    const void* identity = container_identity(value);
    const auto known = containers_.find(identity);
    if (known != containers_.end() && heights_[known->second] != kOpen) {
      flat_.items.push_back({value.kind(), true, false, known->second, 0});
      flat_.tree += "{\"r\":" + std::to_string(known->second) + '}';
      return heights_[known->second];
    }
    std::size_t height = 0;
    const auto index = static_cast<std::uint32_t>(flat_.containers.size());
    walk_.open(identity, [&] {
      containers_.emplace(identity, index);
      heights_.push_back(kOpen);
      flat_.containers.push_back(identity);
      if (const auto* dict = value.get_if<Dict>()) {
        height = visit_dict(*dict, index);
      } else if (const auto* list = value.get_if<List>()) {
        height = visit_sequence(*list, ValueKind::kList, index);
      } else if (const auto* tuple = value.get_if<Tuple>()) {
        height = visit_sequence(*tuple, ValueKind::kTuple, index);
      } else {
        height = visit_node(value.as<NodePtr>(), index);
      }
    });
    if (++height > kMaxTreeDepth) {
      throw make_error<InvalidArgument>(
          walk_.path().shown() + " is deeper than " + std::to_string(kMaxTreeDepth) + " levels", {},
          {}, walk_.path().text());
    }
    heights_[index] = height;
    return height;
  }

  void begin(ValueKind kind, std::uint32_t index, std::size_t count,
             std::weak_ptr<const void> hold) {
    flat_.items.push_back({kind, false, false, index, static_cast<std::uint32_t>(count)});
    flat_.holds.push_back(std::move(hold));
  }

  void append_key(const Key& key) {
    if (key.is_string()) {
      append_json_string(flat_.tree, Path::escape(key));
    } else {
      flat_.tree += std::to_string(key.integer());
    }
  }

  std::size_t visit_entry(const Key& key, const Value& value) {
    flat_.keys.push_back(key);
    flat_.tree += '[';
    append_key(key);
    flat_.tree += ',';
    std::size_t height = 0;
    walk_.below(key, [&] { height = visit(value); });
    flat_.tree += ']';
    return height;
  }

  std::size_t visit_dict(const Dict& dict, std::uint32_t index) {
    begin(ValueKind::kDict, index, dict.size(), dict.weak());
    flat_.tree += "{\"d\":[";
    std::size_t height = 0;
    bool first = true;
    for (const auto& [key, value] : dict) {
      if (!std::exchange(first, false)) flat_.tree += ',';
      height = std::max(height, visit_entry(key, value));
    }
    flat_.tree += "]}";
    return height;
  }

  std::size_t visit_sequence(const Sequence& sequence, ValueKind kind, std::uint32_t index) {
    begin(kind, index, sequence.size(), sequence.weak());
    flat_.tree += kind == ValueKind::kList ? "{\"l\":[" : "{\"u\":[";
    std::size_t height = 0;
    for (std::size_t i = 0; i < sequence.size(); ++i) {
      if (i > 0) flat_.tree += ',';
      walk_.below(Key(i), [&] { height = std::max(height, visit(sequence[i])); });
    }
    flat_.tree += "]}";
    return height;
  }

  std::size_t visit_node(const NodePtr& node, std::uint32_t index) {
    // Kept until the end of the walk: what children() made for us must not lend its identity to
    // others.
    const auto& list =
        *kept_.emplace_back(std::make_unique<std::vector<Node::Child>>(node->children()));
    begin(ValueKind::kNode, index, list.size(), node);
    flat_.nodes.push_back({node->type_name(), node->auxiliary().clone()});
    flat_.tree += "{\"n\":";
    append_json_string(flat_.tree, Path::escape(Key(flat_.nodes.back().type_name)));
    flat_.tree += ",\"x\":";
    const auto begin = flat_.tree.size();
    append_plain(flat_.nodes.back().auxiliary);
    const auto depth = json_depth(std::string_view(flat_.tree).substr(begin));
    if (depth > std::exchange(deepest_, std::max(deepest_, depth))) deepest_path_ = walk_.path();
    flat_.tree += ",\"c\":[";
    std::size_t height = 0;
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (i > 0) flat_.tree += ',';
      height = std::max(height, visit_entry(Key(list[i].name), list[i].value));
    }
    flat_.tree += "]}";
    return height;
  }

  [[noreturn]] static void refuse_depth(const Path& path) {
    throw make_error<InvalidArgument>(
        path.shown() +
            ": the auxiliary data of this node is nested too deeply for an image; the "
            "tree and it may take " +
            std::to_string(kMaxJsonDepth) + " levels of JSON",
        {}, {}, path.text());
  }

  // Plain data as JSON, its values included: it is structure.
  void append_plain(const Value& value, std::size_t depth = 0) {
    if (depth > kMaxJsonDepth) refuse_depth(walk_.path());
    auto& json = flat_.tree;
    switch (value.kind()) {
      case ValueKind::kNull:
        json += "null";
        return;
      case ValueKind::kBool:
        json += value.as<bool>() ? "true" : "false";
        return;
      case ValueKind::kInt:
        json += std::to_string(value.as<std::int64_t>());
        return;
      case ValueKind::kDouble: {
        const auto number = value.as<double>();
        json += "{\"f\":\"" + hex(std::as_bytes(std::span(&number, 1))) + "\"}";
        return;
      }
      case ValueKind::kString:
        append_json_string(json, Path::escape(Key(value.as<std::string>())));
        return;
      case ValueKind::kBytes:
        json += "{\"b\":\"" + hex(value.as<Bytes>()) + "\"}";
        return;
      case ValueKind::kList:
        json += "{\"l\":";
        append_plain_all(value.as<List>(), depth);
        json += '}';
        return;
      case ValueKind::kTuple:
        json += "{\"u\":";
        append_plain_all(value.as<Tuple>(), depth);
        json += '}';
        return;
      case ValueKind::kDict: {
        json += "{\"d\":[";
        bool first = true;
        for (const auto& [key, entry] : value.as<Dict>()) {
          json += std::exchange(first, false) ? "[" : ",[";
          append_key(key);
          json += ',';
          append_plain(entry, depth + 1);
          json += ']';
        }
        json += "]}";
        return;
      }
      default:
        throw make_error<InvalidArgument>(walk_.path().shown() +
                                              ": the auxiliary data of a node holds " +
                                              value.describe() + "; make it a child",
                                          {}, {}, walk_.path().text());
    }
  }
  void append_plain_all(const Sequence& sequence, std::size_t depth) {
    flat_.tree += '[';
    for (std::size_t i = 0; i < sequence.size(); ++i) {
      if (i > 0) flat_.tree += ',';
      append_plain(sequence[i], depth + 1);
    }
    flat_.tree += ']';
  }

  static constexpr std::size_t kOpen = SIZE_MAX;
  FlatState flat_;
  Walk walk_;
  std::unordered_map<const void*, std::uint32_t> tensors_, storages_, containers_;
  std::vector<std::size_t> heights_;
  std::vector<std::unique_ptr<std::vector<Node::Child>>> kept_;
  std::size_t deepest_ = 0;  // levels of JSON of a node's auxiliary data
  Path deepest_path_;
};

}  // namespace

FlatState flatten(const Value& state) { return Flattener().run(state); }

std::size_t json_depth(std::string_view text) {
  std::size_t depth = 0, most = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      most = std::max(most, ++depth);
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return most;
}

void append_json_string(std::string& json, std::string_view text) {
  json += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    json += c;
  }
  json += '"';
}

}  // namespace meshstage::detail
