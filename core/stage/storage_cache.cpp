#include <algorithm>
#include <functional>
#include <unordered_set>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/storage_cache_impl.hpp>

namespace meshstage::detail {
namespace {

using Bytes = std::span<const std::byte>;

// Ranges by address, for asking whether another overlaps one.
class Ranges {
 public:
  void add(Bytes bytes) { ranges_.push_back(bytes); }
  void sort() {
    std::sort(ranges_.begin(), ranges_.end(),
              [](Bytes a, Bytes b) { return std::less<>()(a.data(), b.data()); });
    // Ranges may overlap each other (views of one place by external handles): ends ascend, too.
    const std::byte* end = nullptr;
    for (auto& range : ranges_) {
      end = std::max(end, range.data() + range.size(), std::less<>());
      range = {range.data(), end};
    }
  }
  [[nodiscard]] bool overlap(Bytes bytes) const {
    if (bytes.empty()) return false;
    // The last that begins before the end of `bytes` ends last.
    const auto* const end = bytes.data() + bytes.size();
    const auto it = std::partition_point(ranges_.begin(), ranges_.end(), [&](Bytes range) {
      return std::less<>()(range.data(), end);
    });
    if (it == ranges_.begin()) return false;
    const auto& last = *std::prev(it);
    return std::less<>()(bytes.data(), last.data() + last.size());
  }

 private:
  std::vector<Bytes> ranges_;
};

std::vector<std::uint64_t> sizes_of(std::span<const CacheSource> sources) {
  std::vector<std::uint64_t> sizes;
  for (const auto& source : sources) sizes.push_back(source.storage.nbytes());
  return sizes;
}

}  // namespace

bool StorageCache::Entry::dead() const {
  return std::any_of(members.begin(), members.end(),
                     [](const WeakStorage& member) { return member.expired(); });
}

std::vector<Storage> StorageCache::place(std::span<const CacheSource> sources) {
  forget_dead();
  auto known = known_places(sources);
  std::vector<Storage> places;
  try {
    places = take(sources, known);
  } catch (const OutOfMemory&) {
    forget_all_but(known);
    try {
      places = take(sources, known);
    } catch (const OutOfMemory&) {
      known.assign(sources.size(), {});
      by_member_.clear();
      places = take(sources, known);
    }
  }
  known.clear();
  if (arena_.wasteful(places)) {
    try {
      places = arena_.take(sizes_of(sources), HostArena::From::kNew);
    } catch (const OutOfMemory&) {
      // The wasteful places do.
    }
  }
  for (std::size_t i = 0; i < sources.size(); ++i) remember(sources[i], places[i]);
  arena_.release_free_blocks();
  return places;
}

// Without those that this staging would read while it writes them.
std::vector<Storage> StorageCache::known_places(std::span<const CacheSource> sources) const {
  Ranges read;
  for (const auto& source : sources) {
    if (arena_.contains(source.storage.bytes())) read.add(source.storage.bytes());
  }
  read.sort();
  std::vector<Storage> known(sources.size());
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const auto* entry = find(sources[i]);
    if (entry != nullptr && !read.overlap(entry->place.bytes())) known[i] = entry->place;
  }
  return known;
}

// The known places, and others for the rest.
std::vector<Storage> StorageCache::take(std::span<const CacheSource> sources,
                                        std::vector<Storage> known) {
  std::vector<std::uint64_t> sizes;
  std::vector<std::size_t> missing;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (known[i].valid()) continue;
    missing.push_back(i);
    sizes.push_back(sources[i].storage.nbytes());
  }
  if (missing.empty()) return known;
  const auto fresh = arena_.take(sizes, HostArena::From::kHoles);
  for (std::size_t i = 0; i < missing.size(); ++i) known[missing[i]] = fresh[i];
  return known;
}

const StorageCache::Entry* StorageCache::find(const CacheSource& source) const {
  const auto it = by_member_.find(source.members.front().identity());
  if (it == by_member_.end()) return nullptr;
  const auto& entry = *it->second;
  const auto same = [](const WeakStorage& a, const Storage& b) {
    return a.identity() == b.identity();
  };
  return std::equal(entry.members.begin(), entry.members.end(), source.members.begin(),
                    source.members.end(), same)
             ? &entry
             : nullptr;
}

void StorageCache::remember(const CacheSource& source, const Storage& place) {
  const auto* known = find(source);
  if (known != nullptr && known->place == place) return;
  auto entry = std::make_shared<Entry>();
  entry->place = place;
  for (const auto& member : source.members) {
    entry->members.emplace_back(member);
    // A storage has one place: what it was staged to within other memory is not refreshed any more.
    const auto it = by_member_.find(member.identity());
    if (it != by_member_.end()) forget(*it->second);
  }
  for (const auto& member : source.members) by_member_[member.identity()] = entry;
}

void StorageCache::forget(const Entry& entry) {
  const auto members = entry.members;  // the entry goes with its last
  for (const auto& member : members) by_member_.erase(member.identity());
}

void StorageCache::forget_dead() {
  std::vector<std::shared_ptr<const Entry>> dead;
  for (const auto& [member, entry] : by_member_) {
    if (entry->dead()) dead.push_back(entry);
  }
  for (const auto& entry : dead) forget(*entry);
}

void StorageCache::forget_all_but(std::span<const Storage> places) {
  std::unordered_set<const void*> kept;
  for (const auto& place : places) {
    if (place.valid()) kept.insert(place.identity());
  }
  std::erase_if(by_member_,
                [&](const auto& entry) { return !kept.contains(entry.second->place.identity()); });
}

bool StorageCache::any_dead(std::size_t living) const {
  if (by_member_.size() <= living) return false;
  return std::any_of(by_member_.begin(), by_member_.end(),
                     [](const auto& entry) { return entry.second->dead(); });
}

std::size_t StorageCache::storages() const {
  return static_cast<std::size_t>(
      std::count_if(by_member_.begin(), by_member_.end(), [](const auto& item) {
        return item.first == item.second->members.front().identity() && !item.second->dead();
      }));
}

std::uint64_t StorageCache::bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [member, entry] : by_member_) {
    if (member == entry->members.front().identity() && !entry->dead())
      bytes += entry->place.nbytes();
  }
  return bytes;
}

void StorageCache::clear() {
  by_member_.clear();
  arena_.clear();
}

}  // namespace meshstage::detail
