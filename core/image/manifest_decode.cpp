// Reads a manifest. The safetensors index has checked names, sizes and offsets of the entries; here
// the structure in "__metadata__" is checked against them.
#include <algorithm>

#include <meshstage/core/image/manifest_impl.hpp>
#include <meshstage/core/image/safetensors.hpp>

namespace meshstage::detail {
namespace {

using nlohmann::json;

[[noreturn]] void refuse(const std::string& why) { throw CorruptData("image manifest: " + why); }

std::uint64_t unsigned_of(const json& j, const char* what) {
  if (!j.is_number_unsigned()) refuse(std::string(what) + " is not a number from 0 on");
  return j.get<std::uint64_t>();
}

std::int64_t signed_of(const json& j, const char* what) {
  const auto number = unsigned_of(j, what);
  if (number > static_cast<std::uint64_t>(INT64_MAX)) refuse(std::string(what) + " is too large");
  return static_cast<std::int64_t>(number);
}

const json& member(const json& j, const char* name) {
  const auto it = j.find(name);
  if (it == j.end()) refuse(std::string("\"") + name + "\" is missing");
  return *it;
}

const json& list(const json& j, const char* what) {
  if (!j.is_array()) refuse(std::string(what) + " is not a list");
  return j;
}

std::vector<std::int64_t> numbers(const json& j, const char* what) {
  if (list(j, what).size() > kMaxDims)
    refuse(std::string(what) + " has " + std::to_string(j.size()) + " dims");
  std::vector<std::int64_t> result;
  for (const auto& n : j) result.push_back(signed_of(n, what));
  return result;
}

Manifest::View view_of(const json& j, std::size_t index, std::size_t storages) {
  const auto what = "tensor " + std::to_string(index);
  if (!j.is_array() || (j.size() != 3 && j.size() != 5))
    refuse(what + " is not [storage, dtype, shape(, strides, offset)]");
  Manifest::View view;
  const auto storage = unsigned_of(j[0], "a tensor's storage");
  if (storage >= storages)
    refuse(what + " is on storage " + std::to_string(storage) + " of " + std::to_string(storages));
  view.storage = static_cast<std::uint32_t>(storage);
  const auto dtype =
      j[1].is_string() ? dtype_from_string(j[1].get_ref<const std::string&>()) : std::nullopt;
  if (!dtype) refuse(what + " has no known dtype");
  view.dtype = *dtype;
  view.shape = numbers(j[2], "a tensor's shape");
  if (j.size() == 5) {
    view.strides = numbers(j[3], "a tensor's strides");
    view.offset = signed_of(j[4], "a tensor's offset");
  } else {
    try {
      view.strides = contiguous_strides(view.shape);
    } catch (const InvalidArgument& e) {
      refuse(what + ": " + e.what());
    }
  }
  return view;
}

Manifest::Range entry_range(const SafetensorsIndex& index, std::string_view name) {
  const auto* entry = index.find(name);
  if (entry == nullptr) refuse("the entry \"" + std::string(name) + "\" is missing");
  return {index.data_begin() + entry->begin, index.data_begin() + entry->end};
}

// The entry of that range in the data section, or null.
const SafetensorsEntry* entry_at(const SafetensorsIndex& index, const Manifest::Range& range) {
  const auto& entries = index.entries();
  const auto it = std::lower_bound(
      entries.begin(), entries.end(), range, [](const auto& e, const Manifest::Range& wanted) {
        return std::pair(e.begin, e.end) < std::pair(wanted.begin, wanted.end);
      });
  return it != entries.end() && it->begin == range.begin && it->end == range.end ? &*it : nullptr;
}

// The ranges of the storages: each is the range of an entry, and no two are the same.
std::vector<Manifest::Range> storage_ranges(const json& j, const SafetensorsIndex& index) {
  std::vector<Manifest::Range> ranges;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> used;
  for (const auto& r : list(j, "\"storages\"")) {
    if (!r.is_array() || r.size() != 2) refuse("a storage is not [begin, end]");
    const Manifest::Range range{unsigned_of(r[0], "a storage's begin"),
                                unsigned_of(r[1], "a storage's end")};
    if (entry_at(index, range) == nullptr) {
      refuse("storage " + std::to_string(ranges.size()) + " at [" + std::to_string(range.begin) +
             ", " + std::to_string(range.end) + ") is no entry of the header");
    }
    if (range.begin != range.end) used.emplace_back(range.begin, range.end);
    ranges.push_back({index.data_begin() + range.begin, index.data_begin() + range.end});
  }
  std::sort(used.begin(), used.end());
  if (std::adjacent_find(used.begin(), used.end()) != used.end())
    refuse("two storages lie in the same place");
  return ranges;
}

// Where the part of each lender lies: ascending by rank and offset, apart, from 0.
std::vector<Manifest::Range> part_ranges(const json& j, std::vector<BorrowedPart>& parts) {
  std::vector<Manifest::Range> ranges;
  for (const auto& p : list(j, "\"shared\"")) {
    if (!p.is_array() || p.size() != 3) refuse("a borrowed part is not [rank, begin, end]");
    const auto rank = unsigned_of(p[0], "a lender");
    const Manifest::Range range{unsigned_of(p[1], "a borrowed part's begin"),
                                unsigned_of(p[2], "a borrowed part's end")};
    if (rank > static_cast<std::uint64_t>(INT32_MAX) ||
        (!parts.empty() && rank <= static_cast<std::uint64_t>(parts.back().rank))) {
      refuse("the lenders do not ascend");
    }
    if (range.begin >= range.end || (ranges.empty() && range.begin != 0) ||
        (!ranges.empty() && range.begin < ranges.back().end)) {
      refuse("the part of rank " + std::to_string(rank) +
             " is empty, or not behind the one before it");
    }
    parts.push_back({static_cast<int>(rank), {}});
    ranges.push_back(range);
  }
  if (parts.empty()) refuse("\"shared\" is an empty list");
  return ranges;
}

// What other ranks have too. Every storage that begins in the borrowed bytes lies in one of the
// parts, which begin and end with storages.
void read_borrowed(const json& j, const SafetensorsIndex& index, Manifest& m) {
  const auto ranges = part_ranges(j, m.borrowed);
  const auto end = ranges.back().end;
  const auto values_begin = m.values.begin - m.data_begin;
  const auto over = end % m.block_bytes;
  const auto padding = over == 0 ? 0 : m.block_bytes - over;
  if (end > values_begin || padding > values_begin - end)
    refuse("the borrowed bytes, in whole blocks, reach beyond the storages");
  m.borrowed_bytes = end + padding;

  std::vector<Manifest::Range> storages;  // in the data section, ascending
  for (const auto& s : m.storages) {
    if (s.begin != s.end) storages.push_back({s.begin - m.data_begin, s.end - m.data_begin});
  }
  std::sort(storages.begin(), storages.end(),
            [](const auto& a, const auto& b) { return a.begin < b.begin; });
  std::size_t part = 0;
  for (const auto& s : storages) {
    if (s.begin >= m.borrowed_bytes) break;
    while (part < ranges.size() && s.begin >= ranges[part].end) ++part;
    if (part == ranges.size() || s.begin < ranges[part].begin || s.end > ranges[part].end)
      refuse("the storage at [" + std::to_string(s.begin) + ", " + std::to_string(s.end) +
             ") lies in the borrowed bytes, but in no rank's part");
    m.borrowed[part].pieces.push_back(
        {entry_at(index, s)->name, m.data_begin + s.begin, s.end - s.begin});
  }
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const auto& pieces = m.borrowed[i].pieces;
    if (pieces.empty() || pieces.front().offset != m.data_begin + ranges[i].begin ||
        pieces.back().offset + pieces.back().bytes != m.data_begin + ranges[i].end) {
      refuse("the part of rank " + std::to_string(m.borrowed[i].rank) +
             " does not begin and end with storages");
    }
  }
}

json parse_structure(std::string_view text) {
  // A parser's answer to very deep nesting is not ours to rely on; a 0 ends its text.
  if (json_depth(text) > kMaxJsonDepth) refuse("its structure is nested too deeply");
  if (text.find('\0') != std::string_view::npos) refuse("its structure has a byte of 0");
  return json::parse(text);
}

Manifest decode(std::span<const std::byte> front, std::uint64_t image_bytes) {
  const auto index = SafetensorsIndex::parse_front(front, image_bytes);
  const auto text = index.find_metadata(kMetadataKey);
  if (!text)
    refuse("it has no \"meshstage\" in __metadata__: a safetensors file, but not one of ours");
  const auto root = parse_structure(*text);
  if (!root.is_object()) refuse("its structure is not an object");
  const auto format = unsigned_of(member(root, "format"), "\"format\"");
  if (format != kFormatVersion && format != kBorrowingVersion)
    refuse(describe_unknown_version(format));
  Manifest m;
  m.data_begin = index.data_begin();
  m.block_bytes = unsigned_of(member(root, "block_bytes"), "\"block_bytes\"");
  if (m.block_bytes == 0) refuse("blocks of 0 bytes");
  m.storages = storage_ranges(member(root, "storages"), index);
  for (const auto& j : list(member(root, "tensors"), "\"tensors\"")) {
    m.views.push_back(view_of(j, m.views.size(), m.storages.size()));
  }
  m.values = entry_range(index, kValuesName);
  m.trailer = entry_range(index, kTrailerName);
  if (m.trailer.end != image_bytes || m.values.end != m.trailer.begin) {
    refuse("values and trailer are not the last two entries");
  }
  if (root.contains("shared") != (format == kBorrowingVersion))
    refuse("\"shared\" belongs to version 2, and to no other");
  if (format == kBorrowingVersion) read_borrowed(root["shared"], index, m);
  m.tree = member(root, "tree");
  return m;
}

}  // namespace

Manifest decode_manifest(std::span<const std::byte> front, std::uint64_t image_bytes) {
  try {
    return decode(front, image_bytes);
  } catch (const json::exception& e) {
    refuse(e.what());
  }
}

std::string describe_range(std::span<const std::byte> front, std::uint64_t image_bytes,
                           std::uint64_t begin, std::uint64_t end, std::string& first) {
  constexpr std::size_t kShown = 3;
  const auto index = SafetensorsIndex::parse_front(front, image_bytes);
  std::string text;
  std::size_t count = 0;
  for (const auto& entry : index.entries()) {
    if (entry.begin == entry.end || index.data_begin() + entry.end <= begin ||
        index.data_begin() + entry.begin >= end || entry.name.starts_with(kPadPrefix)) {
      continue;
    }
    const bool reserved = entry.name == kValuesName;
    if (++count > kShown) continue;
    if (count > 1) text += ", ";
    text += reserved ? "the scalars" : entry.name;
    if (first.empty() && !reserved) first = entry.name;
  }
  if (count == 0) return "padding";
  if (count > kShown) text += " and " + std::to_string(count - kShown) + " more";
  return text;
}

}  // namespace meshstage::detail
