#include <meshstage/core/image/safetensors_dict.hpp>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <unordered_set>

#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/image/quoted.hpp>

namespace meshstage {

namespace {

using detail::in_quotes;
using detail::range_text;

constexpr std::size_t kHeaderAlignment = 8;
constexpr std::string_view kImageKey = "meshstage";  // of the metadata

/// Elements that are two of something are aligned as one of it.
std::size_t alignment_of(DType dtype) {
  return std::min<std::size_t>(size_of(dtype), sizeof(double));
}

[[noreturn]] void refuse(const SafetensorsEntry& entry, const std::string& what) {
  throw make_error<CorruptData>(
      "tensor " + in_quotes(entry.name) + ": " + range_text(entry) + ": " + what, {}, {},
      entry.name);
}

Shape to_shape(const SafetensorsEntry& entry) {
  Shape shape;
  for (const auto d : entry.shape) {
    if (!std::in_range<std::int64_t>(d)) {
      refuse(entry, "dimension " + std::to_string(d) + " does not fit 63 bits");
    }
    shape.push_back(static_cast<std::int64_t>(d));
  }
  return shape;
}

Value decode_entry(const SafetensorsEntry& entry, std::span<const std::byte> bytes,
                   const std::shared_ptr<const void>& owner, const StorageTraits& traits) {
  const auto dtype = dtype_from_string(entry.dtype);
  const Shape shape = to_shape(entry);
  Storage storage;
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  if (dtype && address % alignment_of(*dtype) != 0) {
    storage = Storage::allocate(bytes.size());
    if (!bytes.empty()) std::memcpy(storage.data(), bytes.data(), bytes.size());
  } else {
    // Constant memory only if the traits say so: that is the caller's promise.
    storage = Storage::wrap(const_cast<std::byte*>(bytes.data()), bytes.size(), owner, traits);
  }
  if (!dtype) {
    List dims;
    for (const auto d : shape) dims.push_back(d);
    return Value(Tensor::on_storage(std::move(storage), DType::kU8,
                                    {static_cast<std::int64_t>(bytes.size())}),
                 Dict{{kSafetensorsDType, entry.dtype}, {kSafetensorsShape, dims}});
  }
  try {
    return Tensor::on_storage(std::move(storage), *dtype, shape);
  } catch (const InvalidArgument&) {  // the bytes are as many as the shape says; what is left is:
    refuse(entry, "its dimensions or strides do not fit 63 bits");
  }
}

struct Planned {
  Tensor tensor;
  std::string name, dtype;
  std::vector<std::uint64_t> shape;
  std::size_t alignment = 1;
  std::size_t position = 0;  ///< In the Dict.
};

/// The dtype that the file is to name, where the tensor carries the bytes of one that we lack.
std::optional<std::pair<std::string, std::vector<std::uint64_t>>> foreign_dtype(
    const Value& value, const std::string& name) {
  const Dict* attributes = value.attributes();
  const Value* dtype = attributes ? attributes->find(kSafetensorsDType) : nullptr;
  const Value* dims = attributes ? attributes->find(kSafetensorsShape) : nullptr;
  if (dtype == nullptr || dims == nullptr) return std::nullopt;
  const auto refuse = [&](const std::string& what) {
    return make_error<InvalidArgument>("tensor " + in_quotes(name) + ": " + what, {}, {}, name);
  };
  if (!SafetensorsIndex::dtype_bits(dtype->as<std::string>()))
    throw refuse("safetensors has no dtype " + in_quotes(dtype->as<std::string>()));
  std::vector<std::uint64_t> shape;
  for (const auto& d : dims->as<List>()) shape.push_back(d.as<std::uint64_t>());
  const auto total = SafetensorsIndex::tensor_bits(dtype->as<std::string>(), shape);
  if (!total) throw refuse("its shape wraps");
  if (*total != value.as<Tensor>().nbytes() * std::uint64_t{8}) {
    throw refuse("its attributes say " + std::to_string(*total) + " bits, it has " +
                 std::to_string(value.as<Tensor>().nbytes()) + " bytes");
  }
  return std::pair{dtype->as<std::string>(), std::move(shape)};
}

Planned plan_entry(const Key& key, const Value& value) {
  if (!key.is_string()) {
    throw make_error<InvalidArgument>(
        "the key " + std::to_string(key.integer()) + " is no name: safetensors names are strings",
        {}, {}, std::to_string(key.integer()));
  }
  const std::string& name = key.string();
  if (name == "__metadata__") {
    throw make_error<InvalidArgument>("no tensor can be named \"__metadata__\"", {}, {}, name);
  }
  const auto* tensor = value.get_if<Tensor>();
  if (tensor == nullptr) {
    throw make_error<InvalidArgument>(
        in_quotes(name) + " is " + value.describe() + "; a plain safetensors file has tensors only",
        {}, {}, name);
  }
  Planned planned{.tensor = *tensor, .name = name, .dtype = "", .shape = {}};
  if (auto foreign = foreign_dtype(value, name)) {
    planned.dtype = std::move(foreign->first);
    planned.shape = std::move(foreign->second);
    return planned;
  }
  if (tensor->dim() > kMaxDims) {
    throw make_error<InvalidArgument>("tensor " + in_quotes(name) + " has " +
                                          std::to_string(tensor->dim()) + " dims; at most " +
                                          std::to_string(kMaxDims) + " are read back",
                                      {}, {}, name);
  }
  planned.alignment = alignment_of(tensor->dtype());
  for (const auto d : tensor->shape()) planned.shape.push_back(static_cast<std::uint64_t>(d));
  planned.dtype = to_string(tensor->dtype());
  if (tensor->dtype() == DType::kC128) {
    planned.dtype = to_string(DType::kF64);
    planned.shape.push_back(2);
  }
  return planned;
}

void check_metadata(const std::vector<std::pair<std::string, std::string>>& metadata) {
  std::unordered_set<std::string_view> keys;
  for (const auto& [key, text] : metadata) {
    if (key == kImageKey) {
      throw InvalidArgument("the metadata key " + in_quotes(key) +
                            " says that a file is an image of this library; take another");
    }
    if (!keys.insert(key).second)
      throw InvalidArgument("the metadata key " + in_quotes(key) + " comes twice");
  }
}

std::vector<std::byte> to_header(nlohmann::ordered_json json) {
  std::string text;
  try {
    text = json.dump();
  } catch (const nlohmann::json::type_error&) {
    throw InvalidArgument("names and metadata of a safetensors file must be UTF-8");
  }
  text.resize((text.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  if (text.size() > kMaxHeaderBytes) {
    throw InvalidArgument("the names and metadata take " + std::to_string(text.size()) +
                          " bytes; a header has at most " + std::to_string(kMaxHeaderBytes));
  }
  std::vector<std::byte> header(kHeaderAlignment + text.size());
  little_endian::store(header.data(), static_cast<std::uint64_t>(text.size()));
  std::memcpy(header.data() + kHeaderAlignment, text.data(), text.size());
  return header;
}

/// Throws for the name itself, so that the error can tell which.
void check_utf8(const std::string& name) {
  try {
    (void)nlohmann::json(name).dump();
  } catch (const nlohmann::json::type_error&) {
    throw make_error<InvalidArgument>("the name " + in_quotes(Path::escape(name)) + " is not UTF-8",
                                      {}, {}, name);
  }
}

}  // namespace

bool is_image(const SafetensorsIndex& index) noexcept {
  return index.find_metadata(kImageKey).has_value();
}

Dict decode_safetensors(std::span<const std::byte> file, std::shared_ptr<const void> owner,
                        StorageTraits traits) {
  const auto index = SafetensorsIndex::parse(file);
  Dict tensors;
  for (const auto& entry : index.entries()) {
    const auto bytes = file.subspan(index.data_begin() + entry.begin, entry.end - entry.begin);
    tensors.set(entry.name, decode_entry(entry, bytes, owner, traits));
  }
  return tensors;
}

SafetensorsPlan plan_safetensors(const Dict& tensors,
                                 const std::vector<std::pair<std::string, std::string>>& metadata) {
  check_metadata(metadata);
  std::vector<Planned> planned;
  planned.reserve(tensors.size());
  for (const auto& [key, value] : tensors) {
    planned.push_back(plan_entry(key, value));
    planned.back().position = planned.size();
    check_utf8(planned.back().name);
  }
  std::sort(planned.begin(), planned.end(), [](const auto& a, const auto& b) {
    return a.alignment != b.alignment ? a.alignment > b.alignment : a.position < b.position;
  });

  // Appended, not looked up: an ordered object's lookup takes time in the number of names.
  using Object = nlohmann::ordered_json::object_t;
  Object json;
  if (!metadata.empty()) {
    Object pairs;
    for (const auto& [key, text] : metadata) pairs.emplace_back(key, text);
    json.emplace_back("__metadata__", std::move(pairs));
  }
  SafetensorsPlan plan;
  std::uint64_t end = 0;
  for (auto& p : planned) {
    const std::uint64_t begin = end;
    if (__builtin_add_overflow(begin, std::uint64_t{p.tensor.nbytes()}, &end)) {
      throw make_error<InvalidArgument>(
          "tensor " + in_quotes(p.name) + ": the file would exceed 64 bits", {}, {}, p.name);
    }
    json.emplace_back(p.name, Object{{"dtype", p.dtype},
                                     {"shape", p.shape},
                                     {"data_offsets", std::vector<std::uint64_t>{begin, end}}});
    plan.tensors.push_back(std::move(p.tensor));
  }
  plan.header = to_header(std::move(json));
  if (__builtin_add_overflow(end, std::uint64_t{plan.header.size()}, &plan.file_bytes)) {
    throw InvalidArgument("the file would exceed 64 bits");
  }
  return plan;
}

}  // namespace meshstage
