// From the bytes of an image back to a state dict.
#include <algorithm>

#include <meshstage/core/image/bytes.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/manifest_impl.hpp>
#include <meshstage/core/image/values.hpp>

namespace meshstage {
namespace {

using detail::Manifest;
using nlohmann::json;

[[noreturn]] void refuse(const std::string& why) { throw CorruptData("image manifest: " + why); }

Key key_of(const json& j) {
  if (j.is_number_integer()) {
    if (j.is_number_unsigned() && j.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) {
      refuse("an integer key does not fit 64 signed bits");
    }
    return Key(j.get<std::int64_t>());
  }
  if (!j.is_string()) refuse("a key is neither string nor integer");
  auto key = Path::unescape(j.get_ref<const std::string&>());
  if (!key.is_string()) refuse("a string key reads as an integer");
  return key;
}

std::string text_of(const json& j) {
  if (!j.is_string()) refuse("a name is not a string");
  return key_of(j).string();
}

Bytes from_hex(const json& j) {
  if (!j.is_string()) refuse("bytes are not a string of hex digits");
  const auto& text = j.get_ref<const std::string&>();
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    refuse("bytes are not hex digits");
  };
  if (text.size() % 2 != 0) refuse("an odd number of hex digits");
  Bytes bytes;
  for (std::size_t i = 0; i < text.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(digit(text[i]) * 16 + digit(text[i + 1])));
  }
  return bytes;
}

const json& only_member(const json& j, const char* name) {
  if (j.size() != 1) refuse(std::string("an object of \"") + name + "\" has other members");
  const auto& list = j.at(name);
  if (!list.is_array()) refuse(std::string("\"") + name + "\" is not a list");
  return list;
}

const json& entry_of(const json& j) {
  if (!j.is_array() || j.size() != 2) refuse("an entry is not [key, value]");
  return j;
}

// The auxiliary data of nodes. The manifest's depth is bounded, so this recursion is too.
Value plain_of(const json& j) {
  if (j.is_null()) return {};
  if (j.is_boolean()) return j.get<bool>();
  if (j.is_number_integer()) return key_of(j).integer();
  if (j.is_string()) return text_of(j);
  if (!j.is_object()) refuse("auxiliary data of an unknown kind");
  if (j.contains("f")) {
    const auto bytes = from_hex(j.at("f"));
    if (bytes.size() != 8) refuse("a double of " + std::to_string(bytes.size()) + " bytes");
    return std::bit_cast<double>(detail::load<std::uint64_t>(bytes, 0));
  }
  if (j.contains("b")) return from_hex(j.at("b"));
  if (j.contains("d")) {
    Dict dict;
    for (const auto& e : only_member(j, "d")) {
      const auto key = key_of(entry_of(e)[0]);
      if (dict.contains(key)) refuse("a key of auxiliary data comes twice");
      dict.set(key, plain_of(e[1]));
    }
    return dict;
  }
  const bool is_list = j.contains("l");
  std::vector<Value> values;
  for (const auto& e : only_member(j, is_list ? "l" : "u")) values.push_back(plain_of(e));
  return is_list ? Value(List(std::move(values))) : Value(Tuple(std::move(values)));
}

class Decoder {
 public:
  Decoder(std::span<const std::byte> image, const std::shared_ptr<const void>& owner,
          const NodeRegistry& registry, StorageTraits traits, const Manifest& manifest)
      : registry_(registry),
        values_(image.subspan(manifest.values.begin, manifest.values.end - manifest.values.begin)) {
    std::vector<Storage> storages;
    storages.reserve(manifest.storages.size());
    for (const auto& range : manifest.storages) {
      // Writing is refused where traits.read_only says so.
      auto* data = const_cast<std::byte*>(image.data()) + range.begin;
      storages.push_back(Storage::wrap(data, range.end - range.begin, owner, traits));
    }
    tensors_.reserve(manifest.views.size());
    for (const auto& view : manifest.views) {
      try {
        tensors_.push_back(Tensor::on_storage(storages[view.storage], view.dtype, view.shape,
                                              view.strides, view.offset));
      } catch (const InvalidArgument& e) {
        refuse("tensor " + std::to_string(tensors_.size()) + ": " + e.what());
      }
    }
  }

  Value run(const json& tree) {
    auto value = decode(tree).value;
    values_.finish();
    return value;
  }

 private:
  struct Decoded {
    Value value;
    std::size_t height = 0;  // levels of containers, bounded also through references
  };

  Decoded decode(const json& j) {
    if (j.is_number_unsigned()) return {values_.next(), 0};
    if (!j.is_object()) refuse("a part of the tree is neither a value nor an object");
    if (j.contains("t")) return decode_tensor(j);
    if (j.contains("r")) {
      const auto& r = j.at("r");
      if (!r.is_number_unsigned() || r.get<std::uint64_t>() >= containers_.size() ||
          !containers_[r.get<std::size_t>()]) {
        refuse("a reference to a container that is not there, or not complete");
      }
      return *containers_[r.get<std::size_t>()];
    }
    return decode_container(j);
  }

  Decoded decode_tensor(const json& j) {
    const auto& t = j.at("t");
    if (!t.is_number_unsigned() || t.get<std::uint64_t>() >= tensors_.size())
      refuse("a tensor that is not there");
    const auto& tensor = tensors_[t.get<std::size_t>()];
    const auto attributes = j.find("a");
    if (attributes == j.end()) return {tensor, 0};
    auto decoded = decode(*attributes);
    const auto* dict = decoded.value.get_if<Dict>();
    if (dict == nullptr) refuse("the attributes of a tensor are not a dict");
    return {Value(tensor, *dict), decoded.height};
  }

  Decoded decode_container(const json& j) {
    const auto index = containers_.size();
    containers_.emplace_back();
    std::size_t height = 0;
    Value value;
    if (j.contains("d")) {
      Dict dict;
      for (const auto& e : only_member(j, "d")) {
        const auto key = key_of(entry_of(e)[0]);
        if (dict.contains(key)) refuse("the key " + Path::escape(key) + " comes twice");
        dict.set(key, take(decode(e[1]), height));
      }
      value = dict;
    } else if (j.contains("l")) {
      value = List(decode_all(only_member(j, "l"), height));
    } else if (j.contains("u")) {
      value = Tuple(decode_all(only_member(j, "u"), height));
    } else if (j.contains("n")) {
      value = decode_node(j, height);
    } else {
      refuse("a part of the tree of an unknown kind");
    }
    if (++height > kMaxTreeDepth)
      refuse("the tree is deeper than " + std::to_string(kMaxTreeDepth) + " levels");
    containers_[index] = Decoded{value, height};
    return {std::move(value), height};
  }

  static Value take(Decoded decoded, std::size_t& height) {
    height = std::max(height, decoded.height);
    return std::move(decoded.value);
  }

  std::vector<Value> decode_all(const json& list, std::size_t& height) {
    std::vector<Value> values;
    values.reserve(list.size());
    for (const auto& e : list) values.push_back(take(decode(e), height));
    return values;
  }

  Value decode_node(const json& j, std::size_t& height) {
    if (j.size() != 3 || !j.contains("x") || !j.contains("c") || !j.at("c").is_array()) {
      refuse("a node is not {n, x, c}");
    }
    std::vector<Node::Child> children;
    for (const auto& e : j.at("c")) {
      auto name = text_of(entry_of(e)[0]);
      children.push_back({std::move(name), take(decode(e[1]), height)});
    }
    return registry_.make(text_of(j.at("n")), std::move(children), plain_of(j.at("x")));
  }

  const NodeRegistry& registry_;
  detail::ValuesReader values_;
  std::vector<Tensor> tensors_;
  std::vector<std::optional<Decoded>> containers_;
};

}  // namespace

Value decode_image(std::span<const std::byte> image, std::shared_ptr<const void> owner,
                   const NodeRegistry& registry, StorageTraits traits) {
  if (reinterpret_cast<std::uintptr_t>(image.data()) % 16 != 0) {
    throw InvalidArgument("decode_image(): the image must be aligned to 16 bytes");
  }
  const auto manifest = detail::decode_manifest(image, image.size());
  try {
    return Decoder(image, owner, registry, traits, manifest).run(manifest.tree);
  } catch (const json::exception& e) {
    refuse(e.what());
  } catch (const InvalidArgument& e) {
    refuse(e.what());  // a key or a name that Path::unescape refused
  }
}

}  // namespace meshstage
