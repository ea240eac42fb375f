#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <tuple>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/bytes.hpp>
#include <meshstage/core/os/standard_error.hpp>
#include <meshstage/core/stage/host_arena_impl.hpp>

namespace meshstage::detail {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kAlignment = 64;

// More waste than a tenth, and than this, is worth new memory; so are more blocks than this.
constexpr std::uint64_t kWasteBytes = 64 << 10U;
constexpr std::size_t kBlocksForOneState = 8;

}  // namespace

StagerMemory::StagerMemory(const StagerOptions& options)
    : resource_(options.memory != nullptr ? options.memory : &host_memory()) {
  if (options.share_memory) {
    if (options.memory != nullptr) {
      throw InvalidArgument(
          "StagerOptions: share_memory makes its own memory; leave `memory` null (max_bytes caps "
          "it)");
    }
    resource_ = &shared_.emplace();
  }
  if (options.max_bytes != 0)
    resource_ = &capped_.emplace(*resource_, options.max_bytes, "the stager");
}

HostBlock::HostBlock(std::shared_ptr<StagerMemory> memory, std::size_t bytes)
    : memory_(std::move(memory)),
      bytes_(round_up(bytes, kPage)),
      data_(static_cast<std::byte*>(memory_->resource().allocate(bytes_, kPage))) {}

HostBlock::~HostBlock() {
  pin_.reset();
  memory_->resource().deallocate(data_, bytes_, kPage);
}

Storage HostBlock::storage(std::span<std::byte> range, std::shared_ptr<const void> owner) const {
  const auto* shared = memory_->shared();
  StorageTraits traits;
  traits.pinned = pin_.has_value();
  traits.shared = shared != nullptr;
  if (shared != nullptr) traits.location = shared->locate(range.data());
  return Storage::wrap(range.data(), range.size(), std::move(owner), std::move(traits));
}

std::function<void(const std::string&)> warnings_of(const StagerOptions& options) {
  return [warn = options.warn](const std::string& text) {
    tell_or_write(warn, text, "meshstage: " + text);
  };
}

HostArena::HostArena(const StagerOptions& options)
    : memory_(std::make_shared<StagerMemory>(options)),
      pinner_(options.pinner),
      warn_(warnings_of(options)) {
  if (!options.pin_memory) return;
  if (pinner_ == nullptr) {
    refuse_pinning("there is no device to lock it for");
  } else {
    pinned_from_ = std::max<std::uint64_t>(options.pin_memory_min_bytes, 1);
  }
}

// Once: nothing is pinned from now on.
void HostArena::refuse_pinning(const std::string& why) {
  pinned_from_ = 0;
  warn_("pin_memory is ignored: " + why);
}

bool HostArena::pins(std::uint64_t bytes) const {
  return pinned_from_ != 0 && bytes >= pinned_from_;
}

std::uint64_t HostArena::room_for(std::uint64_t bytes) const {
  return round_up(bytes, pins(bytes) ? kPage : kAlignment);
}

std::vector<Storage> HostArena::take(std::span<const std::uint64_t> sizes, From from) {
  std::vector<Place> places(sizes.size());
  if (from == From::kHoles) fill_holes(sizes, places);
  release_free_blocks(places);
  std::array<std::uint64_t, 2> rest{};  // by whether it is pinned
  std::array<std::vector<std::size_t>, 2> which;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0 || places[i].block != nullptr) continue;
    const std::size_t kind = pins(sizes[i]) ? 1 : 0;
    which.at(kind).push_back(i);
    places[i].begin = rest.at(kind);
    rest.at(kind) += room_for(sizes[i]);
  }
  Blocks fresh;
  for (const std::size_t kind : {0U, 1U}) {
    if (rest.at(kind) == 0) continue;
    auto block = make_block(rest.at(kind), kind == 1);
    const auto* const at = block.memory->bytes().data();
    auto& made = fresh.emplace(at, std::move(block)).first->second;
    for (const auto i : which.at(kind)) places[i].block = &made;
  }
  blocks_.merge(fresh);  // nodes move: the places stay good
  std::vector<Storage> storages;
  storages.reserve(sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    storages.push_back(
        sizes[i] == 0 ? Storage::wrap(nullptr, 0, nullptr, {.shared = memory_->shared() != nullptr})
                      : put(places[i], sizes[i]));
  }
  return storages;
}

// The smallest hole that is large enough, for the largest storages first: what replaces storages of
// the same sizes fits exactly.
void HostArena::fill_holes(std::span<const std::uint64_t> sizes, std::vector<Place>& places) {
  using Hole = std::tuple<std::uint64_t, Block*, std::uint64_t>;  // room, block, begin
  std::array<std::set<Hole>, 2> holes;
  for (auto& [at, block] : blocks_) {
    std::erase_if(block.parts, [](const Part& part) { return part.owner.expired(); });
    std::sort(block.parts.begin(), block.parts.end(),
              [](const Part& a, const Part& b) { return a.begin < b.begin; });
    std::uint64_t end = 0;
    const auto add = [&, &in = block](std::uint64_t next) {
      if (next > end) holes.at(in.pinned ? 1 : 0).emplace(next - end, &in, end);
    };
    for (const auto& part : block.parts) {
      add(part.begin);
      end = part.end;
    }
    add(block.bytes);
  }
  if (holes[0].empty() && holes[1].empty()) return;
  std::vector<std::size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return sizes[a] > sizes[b]; });
  for (const auto i : order) {
    if (sizes[i] == 0) continue;
    auto& fitting = holes.at(pins(sizes[i]) ? 1 : 0);
    const auto room = room_for(sizes[i]);
    const auto it = fitting.lower_bound(Hole(room, nullptr, 0));
    if (it == fitting.end()) continue;
    const auto [hole, block, begin] = *it;
    fitting.erase(it);
    places[i] = {block, begin};
    if (hole > room) fitting.emplace(hole - room, block, begin + room);
  }
}

HostArena::Block HostArena::make_block(std::uint64_t bytes, bool pinned) {
  Block block{std::make_shared<HostBlock>(memory_, bytes), false, bytes, {}};
  if (!pinned || pinned_from_ == 0) return block;
  try {
    block.memory->pin(*pinner_);
    block.pinned = true;
  } catch (const Error& e) {
    refuse_pinning(e.what());
  }
  return block;
}

Storage HostArena::put(Place place, std::uint64_t bytes) {
  auto& block = *place.block;
  const auto owner = std::make_shared<const std::shared_ptr<HostBlock>>(block.memory);
  auto storage = block.memory->storage(block.memory->bytes().subspan(place.begin, bytes), owner);
  const auto unit = block.pinned ? kPage : kAlignment;
  block.parts.push_back({place.begin, place.begin + round_up(bytes, unit), owner});
  return storage;
}

void HostArena::release_free_blocks(std::span<const Place> but) {
  std::set<const Block*> taken;
  for (const auto& place : but) taken.insert(place.block);
  std::erase_if(blocks_, [&](const auto& entry) {
    const auto& block = entry.second;
    return !taken.contains(&block) &&
           std::all_of(block.parts.begin(), block.parts.end(),
                       [](const Part& part) { return part.owner.expired(); });
  });
}

void HostArena::release_free_blocks() { release_free_blocks({}); }

HostArena::Blocks::const_iterator HostArena::block_at(const std::byte* at) const {
  auto it = blocks_.upper_bound(at);
  if (it == blocks_.begin()) return blocks_.end();
  --it;
  const auto bytes = it->second.memory->bytes();
  return std::less<>()(at, bytes.data() + bytes.size()) ? it : blocks_.end();
}

bool HostArena::contains(std::span<const std::byte> bytes) const {
  if (bytes.empty()) return false;
  if (block_at(bytes.data()) != blocks_.end()) return true;
  const auto next = blocks_.upper_bound(bytes.data());
  return next != blocks_.end() && std::less<>()(next->first, bytes.data() + bytes.size());
}

bool HostArena::wasteful(std::span<const Storage> storages) const {
  std::set<const Block*> blocks;
  for (const auto& storage : storages) {
    if (storage.nbytes() != 0) blocks.insert(&block_at(storage.data())->second);
  }
  std::uint64_t all = 0, used = 0;
  for (const auto* block : blocks) {
    all += block->bytes;
    for (const auto& part : block->parts) {
      if (!part.owner.expired()) used += part.end - part.begin;
    }
  }
  return blocks.size() > kBlocksForOneState || all - used > std::max(all / 10, kWasteBytes);
}

}  // namespace meshstage::detail
