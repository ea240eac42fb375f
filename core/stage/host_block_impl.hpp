#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/memory/shared_memory.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

namespace meshstage::detail {

/// Where a stager's blocks come from: what its options say, and what it makes itself. Blocks keep
/// it alive.
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

/// Bytes for one image, page aligned, which go back with their last user.
class HostBlock {
 public:
  /// Throws OutOfMemory.
  HostBlock(std::shared_ptr<StagerMemory> memory, std::size_t bytes);
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;
  ~HostBlock();
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {data_, bytes_}; }

  /// Page-locks the segments of at least `min_bytes`; neighbours in one go. Throws what the pinner
  /// throws: then nothing is locked.
  void pin(MemoryPinner& pinner, const ImageLayout& layout, std::size_t min_bytes);
  /// Whether pin() of this layout would find all locked.
  [[nodiscard]] bool pinned(const ImageLayout& layout, std::size_t min_bytes) const;

  /// A storage for each segment of the layout, in the order of their storage indices; `self` owns.
  static std::vector<Storage> storages(const std::shared_ptr<HostBlock>& self,
                                       const ImageLayout& layout);

 private:
  [[nodiscard]] bool locked(std::span<const std::byte> bytes) const;
  std::shared_ptr<StagerMemory> memory_;
  std::size_t bytes_;
  std::byte* data_;
  std::vector<PinnedPages> pins_;
};

}  // namespace meshstage::detail
