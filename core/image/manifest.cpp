#include <unordered_set>

#include <meshstage/core/image/manifest_impl.hpp>

namespace meshstage::detail {
namespace {

std::string numbers(const std::vector<std::int64_t>& list) {
  std::string text = "[";
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (i > 0) text += ',';
    text += std::to_string(list[i]);
  }
  return text + "]";
}

std::string range(std::uint64_t begin, std::uint64_t end) {
  return "[" + std::to_string(begin) + "," + std::to_string(end) + "]";
}

void append_entry(std::string& json, std::string_view name, std::string_view dtype,
                  const Shape& shape, std::uint64_t begin, std::uint64_t end) {
  json += ",\n";
  append_json_string(json, name);
  json += ":{\"dtype\":\"" + std::string(dtype) + "\",\"shape\":" + numbers(shape) +
          ",\"data_offsets\":" + range(begin, end) + "}";
}

void append_bytes_entry(std::string& json, std::string_view name, std::uint64_t begin,
                        std::uint64_t end) {
  append_entry(json, name, "U8", {static_cast<std::int64_t>(end - begin)}, begin, end);
}

// One range for each rank: its segments are neighbours.
std::string borrowed_ranges(const ImageLayout& layout) {
  std::string json = "[";
  for (const auto& part : layout.borrowed) {
    const auto& first = layout.segments[part.segments.front()];
    const auto& last = layout.segments[part.segments.back()];
    if (json.size() > 1) json += ',';
    json += "[" + std::to_string(part.rank) + "," + std::to_string(first.offset) + "," +
            std::to_string(last.offset + last.bytes) + "]";
  }
  return json + "]";
}

// The structure: what safetensors has no words for. Offsets of storages count from the data
// section.
std::string structure(const FlatState& flat, const ImageLayout& layout) {
  std::vector<const ImageSegment*> by_storage(flat.storages.size());
  for (const auto& segment : layout.segments) by_storage[segment.storage] = &segment;
  std::string json = "{\"format\":" + std::to_string(version_for(layout.borrowed_bytes)) +
                     ",\"block_bytes\":" + std::to_string(layout.block_bytes) + ",\"storages\":[";
  for (std::size_t i = 0; i < by_storage.size(); ++i) {
    if (i > 0) json += ',';
    json += range(by_storage[i]->offset, by_storage[i]->offset + by_storage[i]->bytes);
  }
  json += "],\"tensors\":[";
  for (std::size_t i = 0; i < flat.tensors.size(); ++i) {
    const auto& t = flat.tensors[i];
    const auto& tensor = t.tensor;
    if (i > 0) json += ',';
    json += "[" + std::to_string(t.storage) + ",\"" + std::string(to_string(tensor.dtype())) +
            "\"," + numbers(tensor.shape());
    if (tensor.strides() != contiguous_strides(tensor.shape()) || t.offset != 0) {
      json += "," + numbers(tensor.strides()) + "," + std::to_string(t.offset);
    }
    json += "]";
  }
  json += "]";
  if (layout.borrowed_bytes != 0) json += ",\"shared\":" + borrowed_ranges(layout);
  return json + ",\"tree\":" + flat.tree + "}";
}

}  // namespace

std::string describe_unknown_version(std::uint64_t version) {
  return "format version " + std::to_string(version) + "; this library reads versions " +
         std::to_string(kFormatVersion) + " and " + std::to_string(kBorrowingVersion);
}

std::vector<StorageName> storage_names(const FlatState& flat) {
  std::vector<StorageName> names(flat.storages.size());
  // A path comes twice where a node has two children of one name: only the first can have it.
  std::unordered_set<std::string_view> given;
  for (const auto& t : flat.tensors) {
    auto& name = names[t.storage];
    const bool covers = t.offset == 0 && t.tensor.is_contiguous() &&
                        t.tensor.nbytes() == flat.storages[t.storage].nbytes();
    if (name.cover != nullptr || !covers || !given.insert(t.path).second) continue;
    name = {t.path.empty() ? std::string(kRootName) : t.path, &t};
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i].cover == nullptr)
      names[i].name = std::string(kReservedPrefix) + ".storage." + std::to_string(i);
  }
  return names;
}

std::string encode_manifest(const FlatState& flat, const std::vector<StorageName>& names,
                            const ImageLayout& layout) {
  std::string json = "{\"__metadata__\":{\"" + std::string(kMetadataKey) + "\":";
  append_json_string(json, structure(flat, layout));
  json += "}";
  std::uint64_t at = 0;
  std::size_t pads = 0;
  const auto pad_to = [&](std::uint64_t offset) {
    if (offset == at) return;
    append_bytes_entry(json, std::string(kPadPrefix) + std::to_string(pads++), at, offset);
    at = offset;
  };
  for (const auto& segment : layout.segments) {
    const auto end = segment.offset + segment.bytes;
    if (segment.bytes > 0) pad_to(segment.offset);
    const auto& name = names[segment.storage];
    if (name.cover == nullptr) {
      append_bytes_entry(json, name.name, segment.offset, end);
    } else {
      auto shape = name.cover->tensor.shape();
      auto dtype = name.cover->tensor.dtype();
      if (dtype == DType::kC128) {  // safetensors has no such dtype: pairs of F64
        dtype = DType::kF64;
        shape.push_back(2);
      }
      append_entry(json, name.name, to_string(dtype), shape, segment.offset, end);
    }
    at = std::max(at, end);
  }
  pad_to(layout.values_begin);
  append_bytes_entry(json, kValuesName, layout.values_begin, layout.trailer_begin);
  append_bytes_entry(json, kTrailerName, layout.trailer_begin, layout.image_bytes);
  return json + "}";
}

}  // namespace meshstage::detail
