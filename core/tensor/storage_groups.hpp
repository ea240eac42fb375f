#pragma once
#include <cstdint>
#include <vector>

#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Where a storage lies within its group.
struct GroupPlace {
  std::uint32_t group = 0;
  std::uint64_t offset = 0;  ///< Bytes from the group's begin.
  friend bool operator==(const GroupPlace&, const GroupPlace&) = default;
};

/// Storages that are one memory. External memory has no identity that its owners agree on, so there
/// the addresses decide: storages that overlap, at least one of them external, are one group, which
/// spans them all. Neighbours that only touch are not. Every other storage is a group by itself.
struct StorageGroups {
  std::vector<Storage> groups;     ///< In the order of their first members.
  std::vector<GroupPlace> places;  ///< By index of the storage.
};

/// The storages are distinct and valid. A group that one of them spans is that one; any other is a
/// new Storage, which keeps its members.
StorageGroups group_storages(std::vector<Storage> storages);

}  // namespace meshstage::detail
