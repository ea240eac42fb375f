#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// The blocks of an image that devices digest, and their sources. A device that can digest does so
/// for each block whose bytes, zeros between them excepted, are all its own. The host digests the
/// others: blocks with bytes of the CPU or of two devices, blocks that are too short, and sources
/// that are not aligned.
struct DigestedBlocks {
  struct OnDevice {
    Device device;
    std::vector<DeviceBlock> blocks;
    std::vector<DeviceRun> runs;
  };
  struct Where {
    std::uint32_t device = 0;  ///< Index in `devices`.
    std::uint32_t block = 0;   ///< Among that device's.
  };
  std::vector<OnDevice> devices;            ///< Those with at least one block.
  std::vector<std::optional<Where>> where;  ///< By the image's block; nothing: the host's.
};

/// `storages`: in the order of ImageSegment::storage.
MESHSTAGE_API DigestedBlocks digested_blocks(const ImageLayout& layout,
                                             std::span<const Storage> storages);

/// The digested_blocks() of one layout, kept from staging to staging. Threads: any.
class KeptBlocks {
 public:
  /// Makes them anew only if a storage of a device does not lie where it lay at the call before.
  [[nodiscard]] std::shared_ptr<const DigestedBlocks> of(const ImageLayout& layout,
                                                         std::span<const Storage> storages);

 private:
  Mutex mutex_;
  std::vector<const std::byte*> begins_ MESHSTAGE_GUARDED_BY(mutex_);  // null: the CPU's
  std::shared_ptr<const DigestedBlocks> blocks_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage::detail
