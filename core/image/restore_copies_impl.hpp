#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Bytes of an image, and the storage that they are brought into, which is as large.
struct RestoreCopy {
  Storage to;
  std::span<const std::byte> from;
};

/// Makes all copies, into storages of the CPU and of devices, at the same time. `ready` is what
/// devices come behind. Throws as restore_into() for what devices report.
void restore_copies(std::span<const RestoreCopy> copies, std::span<const DeviceReady> ready,
                    const RestoreOptions& options);

}  // namespace meshstage::detail
