#pragma once
#include <cstdint>
#include <vector>

#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// The place of a storage within its group.
struct GroupPlace {
  std::uint32_t group = 0;
  std::uint64_t offset = 0;  ///< Bytes from the group's begin.
  friend bool operator==(const GroupPlace&, const GroupPlace&) = default;
};

/// Groups of storages that are one memory. External memory has no identity that its owners agree
/// on, so addresses decide. Storages that overlap, at least one of them external, form one group,
/// which spans them all; storages that only touch do not. Every other storage is a group by itself.
struct StorageGroups {
  std::vector<Storage> groups;  ///< One storage for each group, in the order of the first members.
  std::vector<GroupPlace> places;  ///< One for each storage, in the order given.
};

/// The storages must be distinct and valid. If one of them spans its group, it represents the
/// group; otherwise a new Storage does, which keeps the members alive.
StorageGroups group_storages(std::vector<Storage> storages);

}  // namespace meshstage::detail
