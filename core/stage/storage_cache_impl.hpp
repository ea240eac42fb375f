#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include <meshstage/core/stage/host_arena_impl.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Memory of a state dict, to be copied: one storage or, where external memory overlaps, the range
/// that several storages span.
struct CacheSource {
  Storage storage;
  std::vector<Storage> members;  ///< The storages whose memory it is; itself if it is one storage.
};

/// A stager's host memory, by the storage that it was made for. A storage keeps its place as long
/// as it lives. The place of a dead storage is used again when no Value has it any more. So staging
/// one storage never overwrites the place of another. Threads: one at a time.
class StorageCache {
 public:
  /// Throws InvalidArgument for options that contradict each other.
  explicit StorageCache(const StagerOptions& options) : arena_(options) {}

  /// The place for each of these distinct sources: a storage of the source's size, which keeps its
  /// memory alive. The places are disjoint and contain none of the sources: if a source lies in the
  /// place of another source, that other source gets a new place.
  /// If there is no memory, the cache first forgets the places of storages that are not among the
  /// sources, then all places. A place that a Value has is never used again. Throws OutOfMemory.
  std::vector<Storage> place(std::span<const CacheSource> sources);
  /// True if a storage that has a place is gone. `living`: how many storages with a place the
  /// caller knows to live.
  [[nodiscard]] bool any_dead(std::size_t living) const;
  /// The number of living storages that have a place, and their bytes.
  [[nodiscard]] std::size_t storages() const;
  [[nodiscard]] std::uint64_t bytes() const;
  /// Frees the blocks with nothing in use.
  void release_free_blocks() { arena_.release_free_blocks(); }
  /// Forgets all places.
  void clear();

 private:
  struct Entry {
    std::vector<WeakStorage> members;  // by identity
    Storage place;
    [[nodiscard]] bool dead() const;
  };

  [[nodiscard]] const Entry* find(const CacheSource& source) const;
  std::vector<Storage> known_places(std::span<const CacheSource> sources) const;
  std::vector<Storage> take(std::span<const CacheSource> sources, std::vector<Storage> known);
  void remember(const CacheSource& source, const Storage& place);
  void forget(const Entry& entry);
  void forget_dead();
  void forget_all_but(std::span<const Storage> places);

  HostArena arena_;
  std::unordered_map<const void*, std::shared_ptr<const Entry>> by_member_;
};

}  // namespace meshstage::detail
