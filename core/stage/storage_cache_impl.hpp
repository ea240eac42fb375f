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

/// Memory of a state dict, to be copied: one storage or, where external memory overlaps, what
/// several storages span.
struct CacheSource {
  Storage storage;
  std::vector<Storage> members;  ///< The storages that it is the memory of; itself if it is one.
};

/// A stager's host memory, by the storage that it was made for. A storage keeps its place as long
/// as it lives. The place of a dead storage is used again when no Value has it any more. So staging
/// one storage never writes over what another was staged to. One thread at a time.
class StorageCache {
 public:
  /// Throws InvalidArgument for options that contradict each other.
  explicit StorageCache(const StagerOptions& options) : arena_(options) {}

  /// Where to copy each of these distinct sources: a storage of its size, which keeps its memory.
  /// The places are disjoint and hold none of the sources: where a source was itself staged to the
  /// place of another one, the other one gets a new place. If there is no memory, the cache first
  /// forgets the places of storages that are not among the sources, then all places. A place that a
  /// Value has is not used again whatever happens. Throws OutOfMemory.
  std::vector<Storage> place(std::span<const CacheSource> sources);
  /// Whether any storage that has a place is gone. So many that have one are known to live.
  [[nodiscard]] bool any_dead(std::size_t living) const;
  /// Storages that have a place and live, and their bytes.
  [[nodiscard]] std::size_t storages() const;
  [[nodiscard]] std::uint64_t bytes() const;
  /// Gives back the blocks that nobody has anything in.
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
