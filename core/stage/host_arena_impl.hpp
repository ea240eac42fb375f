#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/memory/shared_memory.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Where a stager's warnings go: StagerOptions::warn, or else standard error.
std::function<void(const std::string&)> warnings_of(const StagerOptions& options);

/// The source of a stager's blocks: the memory that the stager's options name, or shared memory
/// made here. Blocks keep it alive.
class StagerMemory {
 public:
  /// Throws InvalidArgument for options that contradict each other.
  explicit StagerMemory(const StagerOptions& options);
  StagerMemory(const StagerMemory&) = delete;
  StagerMemory& operator=(const StagerMemory&) = delete;
  [[nodiscard]] MemoryResource& resource() noexcept { return *resource_; }
  /// Null unless the memory is shared.
  [[nodiscard]] const SharedMemory* shared() const noexcept {
    return shared_ ? &*shared_ : nullptr;
  }

 private:
  std::optional<SharedMemory> shared_;
  std::optional<CappedMemory> capped_;
  MemoryResource* resource_;
};

/// Page-aligned bytes, page-locked or not, which are freed with their last user.
class HostBlock {
 public:
  /// Throws OutOfMemory.
  HostBlock(std::shared_ptr<StagerMemory> memory, std::size_t bytes);
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;
  ~HostBlock();
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {data_, bytes_}; }

  /// Page-locks the whole block. Throws what the pinner throws: then nothing is locked.
  void pin(MemoryPinner& pinner) { pin_.emplace(pinner, bytes()); }
  /// A storage in `range`, which lies within bytes(); `owner` keeps the block alive.
  [[nodiscard]] Storage storage(std::span<std::byte> range,
                                std::shared_ptr<const void> owner) const;

 private:
  std::shared_ptr<StagerMemory> memory_;
  std::size_t bytes_;
  std::byte* data_;
  std::optional<PinnedPages> pin_;
};

/// A stager's host memory: its blocks, and which parts of them are in use. A part is in use while
/// there is a handle to the storage that was placed there, also in a Value outside the stager.
/// Pinned storages lie in blocks of their own, on whole pages. Threads: one at a time.
class HostArena {
 public:
  /// Throws InvalidArgument for options that contradict each other; warns once if the options ask
  /// for pinning and there is no pinner.
  explicit HostArena(const StagerOptions& options);

  enum class From : std::uint8_t {
    kHoles,  ///< Free parts where they fit; new memory for the rest.
    kNew,    ///< New memory for all.
  };
  /// Storages of these sizes, disjoint from all that are in use. New memory is one block, and one
  /// more for pinned storages; blocks with nothing in use are freed first. Throws OutOfMemory: then
  /// nothing in use has changed.
  std::vector<Storage> take(std::span<const std::uint64_t> sizes, From from);
  /// True if the blocks of these storages have much unused room, or are many.
  [[nodiscard]] bool wasteful(std::span<const Storage> storages) const;
  /// True if any byte of `bytes` is in a block.
  [[nodiscard]] bool contains(std::span<const std::byte> bytes) const;
  /// Frees the blocks with nothing in use.
  void release_free_blocks();
  /// Lets go of all blocks: each is freed with its last storage.
  void clear() { blocks_.clear(); }

 private:
  /// In use while the owner lives.
  struct Part {
    std::uint64_t begin = 0, end = 0;
    std::weak_ptr<const void> owner;
  };
  struct Block {
    std::shared_ptr<HostBlock> memory;
    bool pinned = false;
    std::uint64_t bytes = 0;  // without the rounding to pages at its end
    std::vector<Part> parts;
  };
  using Blocks = std::map<const std::byte*, Block, std::less<>>;  // by address
  struct Place {
    Block* block = nullptr;
    std::uint64_t begin = 0;
  };

  [[nodiscard]] bool pins(std::uint64_t bytes) const;
  [[nodiscard]] std::uint64_t room_for(std::uint64_t bytes) const;
  void fill_holes(std::span<const std::uint64_t> sizes, std::vector<Place>& places);
  void release_free_blocks(std::span<const Place> but);
  Block make_block(std::uint64_t bytes, bool pinned);
  static Storage put(Place place, std::uint64_t bytes);
  [[nodiscard]] Blocks::const_iterator block_at(const std::byte* at) const;
  void refuse_pinning(const std::string& why);

  const std::shared_ptr<StagerMemory> memory_;
  MemoryPinner* const pinner_;
  const std::function<void(const std::string&)> warn_;
  std::uint64_t pinned_from_ = 0;  // bytes; 0: nothing is pinned
  Blocks blocks_;
};

}  // namespace meshstage::detail
