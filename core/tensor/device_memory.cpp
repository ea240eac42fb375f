#include <meshstage/core/tensor/device_memory.hpp>

#include <set>
#include <utility>

#include <meshstage/core/device/trainer_streams.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::detail {

void require_device_memory(const Storage& storage, const std::string& path) {
  if (storage.device().is_cpu()) return;
  const auto shown = path.empty() ? std::string("the tensor") : path;
  try {
    DeviceRuntime::of(storage.device().type)
        .require_memory(storage.device(), storage.data(), storage.nbytes());
  } catch (const InvalidArgument& e) {
    throw make_error<InvalidArgument>(shown + " " + e.what(), {}, {}, path);
  } catch (const Error& e) {
    throw make_error<InvalidArgument>(
        shown + " is on " + to_string(storage.device()) + ", which cannot be used: " + e.what(), {},
        {}, path);
  }
}

bool is_device_memory(const Storage& storage) {
  try {
    require_device_memory(storage, {});
    return true;
  } catch (const InvalidArgument&) {
    return false;
  }
}

std::vector<DeviceReady> record_ready(std::span<const Storage> storages,
                                      std::span<const TrainerStream> streams) {
  std::set<std::pair<DeviceType, std::int16_t>> devices;
  for (const auto& storage : storages) {
    if (!storage.device().is_cpu()) devices.emplace(storage.device().type, storage.device().index);
  }
  std::vector<TrainerStream> used;
  for (const auto& [type, index] : devices) {
    const auto here = streams_on({type, index}, streams);
    used.insert(used.end(), here.begin(), here.end());
  }
  for (const auto& stream : used)
    DeviceRuntime::of(stream.device.type).require_not_capturing(stream);
  std::vector<DeviceReady> ready;
  for (const auto& stream : used)
    ready.push_back({stream.device, DeviceRuntime::of(stream.device.type).record(stream)});
  return ready;
}

}  // namespace meshstage::detail
