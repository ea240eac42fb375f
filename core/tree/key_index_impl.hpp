#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <meshstage/core/tree/key.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::detail {

/// Where a Dict's keys are among its entries: a hash table with open addressing and linear probing,
/// of nothing but positions. So a Dict with the keys of another copies its table as one block.
class KeyIndex {
 public:
  using Entries = std::span<const Dict::Entry>;

  [[nodiscard]] std::optional<std::size_t> find(const Key& key, Entries entries) const noexcept {
    if (slots_.empty()) return std::nullopt;
    for (std::size_t at = home(key);; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at] == kFree) return std::nullopt;
      const std::size_t position = slots_[at] - 1;
      if (entries[position].first == key) return position;
    }
  }
  /// Makes room for one key more than there are `entries`. add() does not throw then.
  void make_room(Entries entries) {
    if (2 * (entries.size() + 1) > slots_.size()) rebuild(entries, entries.size() + 1);
  }
  /// `key` is the key of entry `position`, and is not there yet.
  void add(const Key& key, std::size_t position) noexcept {
    std::size_t at = home(key);
    while (slots_[at] != kFree) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = static_cast<std::uint32_t>(position + 1);
  }
  /// After an entry was taken out. Does not throw.
  void renew(Entries entries) noexcept {
    std::fill(slots_.begin(), slots_.end(), kFree);
    for (std::size_t i = 0; i < entries.size(); ++i) add(entries[i].first, i);
  }
  void clear() noexcept { slots_.clear(); }

 private:
  static constexpr std::uint32_t kFree = 0;
  static constexpr std::size_t kLeastSlots = 8;

  [[nodiscard]] std::size_t home(const Key& key) const noexcept {
    const std::uint64_t hash = std::hash<Key>{}(key);
    return (hash ^ (hash >> 32U)) & (slots_.size() - 1);
  }
  void rebuild(Entries entries, std::size_t keys) {
    std::size_t size = kLeastSlots;
    while (size < 4 * keys) size *= 2;
    std::vector<std::uint32_t> fresh(size, kFree);
    slots_ = std::move(fresh);
    renew(entries);
  }

  std::vector<std::uint32_t> slots_;  // position + 1; a power of two of them, at most half in use
};

}  // namespace meshstage::detail
