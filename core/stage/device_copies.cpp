#include <algorithm>
#include <thread>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/device_copies.hpp>

namespace meshstage::detail {

void require_devices(const FlatState& flat) {
  std::vector<bool> asked(flat.sources.size());
  for (const auto& tensor : flat.tensors) {
    if (asked[tensor.source]) continue;
    asked[tensor.source] = true;
    require_device_memory(flat.sources[tensor.source], tensor.path);
  }
}

DeviceStream& DeviceStreams::of(Device device) {
  auto& stream = streams_[device.index];
  if (!stream.valid()) stream = DeviceRuntime::of(device.type).open_stream(device);
  return stream;
}

DeviceCopies::DeviceCopies(std::span<const DevicePlace> places, std::span<const DeviceReady> ready,
                           DeviceStreams& streams, std::shared_ptr<const void> keep,
                           CopyDirection direction)
    : keep_(std::move(keep)) {
  where_.reserve(places.size());
  for (const auto& place : places) {
    const auto device = place.from->device();
    auto on = std::find_if(devices_.begin(), devices_.end(),
                           [&](const OnDevice& one) { return one.device == device; });
    if (on == devices_.end()) on = devices_.insert(on, OnDevice{device, {}, {}});
    where_.push_back({static_cast<std::uint32_t>(on - devices_.begin()),
                      static_cast<std::uint32_t>(on->list.size())});
    on->list.push_back({place.to.data(), place.from->data(), place.to.size()});
  }
  try {
    for (auto& on : devices_) {
      auto& stream = streams.of(on.device);
      for (const auto& before : ready) {
        if (before.device == on.device) stream.wait(before.event);
      }
      on.copies = BatchedCopies(stream, direction, on.list);
    }
  } catch (...) {
    // What was issued still happens. Without an event nobody can tell when.
    for (auto& on : devices_) {
      auto& runtime = DeviceRuntime::of(on.device.type);
      try {
        const auto event = streams.of(on.device).record();
        if (keep_ == nullptr) {
          while (!event.over()) std::this_thread::yield();
        } else {
          runtime.keep(event, keep_);
        }
      } catch (const Error&) {
        runtime.keep_for_good(keep_);
      }
    }
    throw;
  }
}

DeviceCopies::~DeviceCopies() {
  for (const auto& on : devices_) {
    if (on.copies.last().over()) continue;
    DeviceRuntime::of(on.device.type).keep(on.copies.last(), keep_);
  }
}

bool DeviceCopies::done() const noexcept {
  return std::all_of(devices_.begin(), devices_.end(),
                     [](const OnDevice& on) { return on.copies.last().over(); });
}

void DeviceCopies::wait(std::size_t place, std::uint64_t bytes, Watermark& progress) const {
  const auto [device, copy] = where_[place];
  devices_[device].copies.behind(copy, bytes).wait(Deadline::never(), [&progress] {
    progress.throw_if_failed();
  });
}

void DeviceCopies::wait_all(Watermark& progress) const {
  for (const auto& on : devices_)
    on.copies.last().wait(Deadline::never(), [&progress] { progress.throw_if_failed(); });
}

DeviceEvent DeviceCopies::staged(Device device) const {
  for (const auto& on : devices_) {
    if (on.device == device) return on.copies.last();
  }
  return {};
}

}  // namespace meshstage::detail
