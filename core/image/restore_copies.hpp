#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Bytes of the host's, and the storage of the same size into which they are copied.
struct RestoreCopy {
  Storage to;
  std::span<const std::byte> from;
};

/// Makes all copies, into storages of the CPU and of devices, at the same time. Devices copy behind
/// the events in `ready`. Errors of devices are those of restore_into().
void restore_copies(std::span<const RestoreCopy> copies, std::span<const DeviceReady> ready,
                    const RestoreOptions& options);

}  // namespace meshstage::detail
