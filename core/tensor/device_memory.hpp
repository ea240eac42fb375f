#pragma once
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Asks the driver whether a storage that claims to be on a device is; nothing is asked for one of
/// the CPU. Throws InvalidArgument, about the tensor at `path`, if it is not, or if its kind of
/// device cannot be used.
void require_device_memory(const Storage& storage, const std::string& path);
/// Whether require_device_memory() would not throw.
[[nodiscard]] bool is_device_memory(const Storage& storage);

/// What trainers had issued on the devices of `storages` at this moment, one for each device and
/// stream. `streams` names the streams that they use there; the legacy stream where none is named.
/// Throws InvalidState before anything is issued if one is being captured into a graph.
[[nodiscard]] std::vector<DeviceReady> record_ready(std::span<const Storage> storages,
                                                    std::span<const TrainerStream> streams);

}  // namespace meshstage::detail
