// Where each storage goes in an image. What stayed since the layout before keeps its offset, so
// that a structure that grows a little moves nothing; freed ranges are filled first; above 10 % of
// waste everything is laid out anew. What other ranks have too comes first, in whole blocks, and
// what is on devices last, by device; where there is such, everything is laid out anew at every
// change.
#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/bytes.hpp>
#include <meshstage/core/image/manifest_impl.hpp>
#include <meshstage/core/image/planner.hpp>
#include <meshstage/core/image/quoted.hpp>
#include <meshstage/core/image/safetensors.hpp>

namespace meshstage::detail {
namespace {

constexpr std::uint64_t kAlignment = 64;
constexpr std::uint64_t kPage = 4096;

// Offsets in the data section, by storage; `end` is behind the last.
struct Placement {
  std::vector<std::uint64_t> offsets;
  std::uint64_t end = 0;
  std::uint64_t borrowed_bytes = 0;
};

// A storage that another rank has too.
struct LoanStorage {
  int rank = 0;
  std::string_view name;
  std::uint32_t storage = 0;
};

// What the offset of a storage, and the room that it takes, are multiples of.
std::uint64_t unit_of(const Storage& storage, const LayoutOptions& options) {
  const bool own_pages = options.own_pages_from != 0 && storage.nbytes() >= options.own_pages_from;
  return own_pages ? kPage : kAlignment;
}
std::uint64_t room_for(const Storage& storage, const LayoutOptions& options) {
  return round_up(storage.nbytes(), unit_of(storage, options));
}

// By rank, then name. None if they fill no block: the padding would cost more than a replica saves.
std::vector<LoanStorage> borrowed_storages(const FlatState& flat,
                                           const std::vector<StorageName>& names,
                                           const LayoutOptions& options) {
  std::unordered_map<std::string_view, std::uint32_t> free;  // not given to a rank yet
  for (std::uint32_t i = 0; i < names.size(); ++i) {
    if (flat.storages[i].nbytes() >= kLeastBorrowedBytes) free.emplace(names[i].name, i);
  }
  std::map<int, std::vector<std::string_view>> wanted;
  for (const auto& part : options.borrowed)
    wanted[part.rank].insert(wanted[part.rank].end(), part.names.begin(), part.names.end());
  std::vector<LoanStorage> borrowed;
  std::uint64_t bytes = 0;
  for (auto& [rank, list] : wanted) {
    std::sort(list.begin(), list.end());
    for (const auto name : list) {
      const auto it = free.find(name);
      if (it == free.end()) continue;
      borrowed.push_back({rank, it->first, it->second});
      bytes += flat.storages[it->second].nbytes();
      free.erase(it);
    }
  }
  if (bytes < options.block_bytes) borrowed.clear();
  return borrowed;
}

// By rank, then name; a storage may complete several ranks.
std::vector<LoanStorage> lent_storages(const FlatState& flat, const std::vector<StorageName>& names,
                                       const LayoutOptions& options) {
  if (options.lent.empty()) return {};
  std::unordered_map<std::string_view, std::uint32_t> by_name;
  for (std::uint32_t i = 0; i < names.size(); ++i) {
    if (flat.storages[i].nbytes() >= kLeastBorrowedBytes) by_name.emplace(names[i].name, i);
  }
  std::set<std::pair<int, std::string_view>> wanted;
  for (const auto& part : options.lent) {
    for (const auto& name : part.names) wanted.emplace(part.rank, name);
  }
  std::vector<LoanStorage> lent;
  for (const auto& [rank, name] : wanted) {
    const auto it = by_name.find(name);
    if (it != by_name.end()) lent.push_back({rank, it->first, it->second});
  }
  return lent;
}

Placement place_anew(const FlatState& flat, const LayoutOptions& options,
                     const std::vector<LoanStorage>& borrowed) {
  Placement p;
  p.offsets.resize(flat.storages.size());
  std::vector<bool> placed(flat.storages.size());
  const auto append = [&](std::uint32_t i) {
    p.offsets[i] = round_up(p.end, unit_of(flat.storages[i], options));
    p.end = p.offsets[i] + room_for(flat.storages[i], options);
    placed[i] = true;
  };
  for (const auto& s : borrowed) append(s.storage);
  p.borrowed_bytes = p.end = round_up(p.end, options.block_bytes);
  std::map<std::pair<DeviceType, std::int16_t>, std::vector<std::uint32_t>> by_device;
  for (std::uint32_t i = 0; i < placed.size(); ++i) {
    const auto device = flat.storages[i].device();
    // Storages of no byte have an entry too, which must not lie within another: all at the begin.
    if (!placed[i] && flat.storages[i].nbytes() > 0)
      by_device[{device.type, device.index}].push_back(i);
  }
  // The CPU's first, which are copied while devices are still at theirs. A block that is a device's
  // alone can be copied and digested there.
  bool fills_blocks = false;  // the device before
  for (const auto& [device, storages] : by_device) {
    std::uint64_t bytes = 0;
    for (const auto i : storages) bytes += room_for(flat.storages[i], options);
    const bool fills = device.first != DeviceType::kCpu && bytes >= options.block_bytes;
    if (fills || fills_blocks) p.end = round_up(p.end, options.block_bytes);
    for (const auto i : storages) append(i);
    fills_blocks = fills;
  }
  return p;
}

bool any_on_device(const FlatState& flat) {
  return std::any_of(flat.storages.begin(), flat.storages.end(),
                     [](const Storage& storage) { return !storage.device().is_cpu(); });
}

// Which offset each storage had before, if it is the same storage, or one of the same name and
// size.
std::vector<std::optional<std::uint64_t>> kept_offsets(const FlatState& flat,
                                                       const std::vector<StorageName>& names,
                                                       const PreviousLayout& previous) {
  const auto& segments = previous.layout.segments;
  std::unordered_map<const void*, const ImageSegment*> by_identity;
  std::unordered_map<std::string_view, const ImageSegment*> by_name;
  std::unordered_map<const ImageSegment*, bool> taken;
  for (const auto& segment : segments) {
    by_identity.emplace(previous.storages[segment.storage].identity(), &segment);
    by_name.emplace(segment.name, &segment);
  }
  std::vector<std::optional<std::uint64_t>> kept(flat.storages.size());
  const auto keep = [&](std::size_t i, const auto& map, const auto& key) {
    const auto it = map.find(key);
    if (it == map.end() || it->second->bytes != flat.storages[i].nbytes() || taken[it->second])
      return;
    taken[it->second] = true;
    kept[i] = it->second->offset - previous.layout.data_begin;
  };
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (flat.storages[i].nbytes() > 0) keep(i, by_identity, flat.storages[i].identity());
  }
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (flat.storages[i].nbytes() > 0 && !kept[i] && names[i].cover != nullptr)
      keep(i, by_name, names[i].name);
  }
  return kept;
}

Placement place_again(const FlatState& flat, const std::vector<StorageName>& names,
                      const LayoutOptions& options, const PreviousLayout& previous) {
  const auto kept = kept_offsets(flat, names, previous);
  Placement p;
  p.offsets.resize(flat.storages.size());
  std::map<std::uint64_t, std::uint64_t> used;  // begin -> end
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (!kept[i]) continue;
    p.offsets[i] = *kept[i];
    used.emplace(*kept[i], *kept[i] + room_for(flat.storages[i], options));
  }
  std::vector<std::pair<std::uint64_t, std::uint64_t>> holes;  // begin, end
  for (const auto& [begin, end] : used) {
    if (begin > p.end) holes.emplace_back(p.end, begin);
    p.end = end;
  }
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const auto room = room_for(flat.storages[i], options);
    if (kept[i] || room == 0) continue;
    const auto from = [&](std::uint64_t begin) {
      return round_up(begin, unit_of(flat.storages[i], options));
    };
    const auto hole = std::find_if(holes.begin(), holes.end(),
                                   [&](auto h) { return from(h.first) + room <= h.second; });
    auto& begin = hole == holes.end() ? p.end : hole->first;
    p.offsets[i] = from(begin);
    begin = p.offsets[i] + room;
  }
  return p;
}

Placement place(const FlatState& flat, const std::vector<StorageName>& names,
                const LayoutOptions& options, const PreviousLayout* previous) {
  auto anew = place_anew(flat, options, {});
  if (previous == nullptr) return anew;
  auto again = place_again(flat, names, options, *previous);
  const auto waste = again.end - std::min(anew.end, again.end);
  return waste > again.end / 10 ? anew : again;
}

// Segments by the rank at the other end of the loan. Those of a rank are neighbours, by name
// ascending.
std::vector<LoanSegments> loan_segments(const std::vector<LoanStorage>& borrowed,
                                        const std::vector<ImageSegment>& segments) {
  std::vector<std::size_t> by_storage(segments.size());
  for (std::size_t i = 0; i < segments.size(); ++i) by_storage[segments[i].storage] = i;
  std::vector<LoanSegments> parts;
  for (const auto& s : borrowed) {
    if (parts.empty() || parts.back().rank != s.rank) parts.push_back({s.rank, {}});
    parts.back().segments.push_back(by_storage[s.storage]);
  }
  return parts;
}

// Room for the scalars to grow in without a new layout.
std::uint64_t values_room(const FlatState& flat, const PreviousLayout* previous) {
  const std::uint64_t used = 8 + flat.values.size();
  if (previous != nullptr) {
    const auto before = previous->layout.trailer_begin - previous->layout.values_begin;
    if (used <= before && before <= 4 * used + kPage) return before;
  }
  return round_up(used + std::min<std::uint64_t>(used / 4, 64 << 10U) + 64, kAlignment);
}

// Refuses what decode_manifest() would refuse.
void check_dims(const FlatState& flat) {
  for (const auto& t : flat.tensors) {
    if (t.tensor.dim() <= kMaxDims) continue;
    throw make_error<InvalidArgument>((t.path.empty() ? std::string("the tensor") : t.path) +
                                          " has " + std::to_string(t.tensor.dim()) +
                                          " dims; an image holds at most " +
                                          std::to_string(kMaxDims),
                                      {}, {}, t.path);
  }
}

void check_header(const FlatState& flat, std::uint64_t bytes, std::uint64_t most) {
  if (bytes <= most) return;
  std::string longest;
  for (const auto& t : flat.tensors) {
    if (t.path.size() > longest.size()) longest = t.path;
  }
  throw make_error<InvalidArgument>(
      "the names and shapes of " + std::to_string(flat.tensors.size()) + " tensors take " +
          std::to_string(bytes) + " bytes; the image's header may have at most " +
          std::to_string(most) + ". The longest path has " + std::to_string(longest.size()) +
          " bytes: " + in_quotes(longest),
      {}, {}, longest);
}

}  // namespace

ImageLayout make_layout(const FlatState& flat, const LayoutOptions& options,
                        const PreviousLayout* previous) {
  check_dims(flat);
  const auto names = storage_names(flat);
  const auto borrowed = borrowed_storages(flat, names, options);
  if (!borrowed.empty() || any_on_device(flat) ||
      (previous != nullptr && previous->layout.borrowed_bytes != 0)) {
    previous = nullptr;
  }
  const auto placement = borrowed.empty() ? place(flat, names, options, previous)
                                          : place_anew(flat, options, borrowed);
  ImageLayout layout;
  layout.borrowed_bytes = placement.borrowed_bytes;
  layout.block_bytes = options.block_bytes;
  for (std::uint32_t i = 0; i < flat.storages.size(); ++i) {
    layout.segments.push_back({i, placement.offsets[i], flat.storages[i].nbytes(), names[i].name});
    layout.storage_bytes += flat.storages[i].nbytes();
  }
  // Storages of no byte lie in one place; their index makes the order unique.
  const auto key = [](const ImageSegment& s) { return std::tuple(s.offset, s.bytes, s.storage); };
  std::sort(layout.segments.begin(), layout.segments.end(),
            [&](const auto& a, const auto& b) { return key(a) < key(b); });
  layout.borrowed = loan_segments(borrowed, layout.segments);
  layout.lent = loan_segments(lent_storages(flat, names, options), layout.segments);
  layout.values_begin = placement.end;
  layout.trailer_begin = layout.values_begin + values_room(flat, previous);
  layout.image_bytes =
      layout.trailer_begin +
      trailer_size(layout.trailer_begin, options.block_bytes,
                   static_cast<std::uint32_t>(layout.borrowed.size() + layout.lent.size()));

  const auto json = encode_manifest(flat, names, layout);
  // Some headroom, so that a little growth of the structure does not move the data.
  layout.data_begin = round_up(8 + json.size() + json.size() / 16 + 512, kPage);
  if (layout.data_begin - 8 > options.max_header_bytes)  // without headroom, then
    layout.data_begin = round_up(8 + json.size(), kPage);
  check_header(flat, layout.data_begin - 8, options.max_header_bytes);
  if (previous != nullptr && 8 + json.size() <= previous->layout.data_begin &&
      previous->layout.data_begin - 8 <= options.max_header_bytes &&
      previous->layout.data_begin <= 4 * layout.data_begin) {
    layout.data_begin = previous->layout.data_begin;
  }
  layout.manifest.assign(layout.data_begin, std::byte{' '});
  store(std::span(layout.manifest), 0, layout.data_begin - 8);
  std::memcpy(layout.manifest.data() + 8, json.data(), json.size());
  layout.manifest_digest = digest128(layout.manifest);
  for (auto& segment : layout.segments) segment.offset += layout.data_begin;
  layout.values_begin += layout.data_begin;
  layout.trailer_begin += layout.data_begin;
  layout.image_bytes += layout.data_begin;
  return layout;
}

}  // namespace meshstage::detail
