#pragma once
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::detail {

/// Asks the driver whether a storage that claims to be on a device is there; does nothing for a
/// storage of the CPU. Throws InvalidArgument, naming the tensor at `path`, if the storage is
/// elsewhere or if its kind of device cannot be used.
void require_device_memory(const Storage& storage, const std::string& path);
/// True if require_device_memory() would not throw.
[[nodiscard]] bool is_device_memory(const Storage& storage);

/// Records an event behind the work that the trainer has issued on the devices of `storages`: one
/// for each device and each of its streams_on() (core/device). Throws InvalidState, before anything
/// is issued, if one of the streams is being captured into a graph.
[[nodiscard]] std::vector<DeviceReady> record_ready(std::span<const Storage> storages,
                                                    std::span<const TrainerStream> streams);

}  // namespace meshstage::detail
