#include <algorithm>
#include <set>
#include <thread>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/device_copies.hpp>

namespace meshstage::detail {
namespace {

bool is_over(const DeviceEvent& event) noexcept {
  try {
    return event.done();
  } catch (const Error&) {
    return true;  // the device failed: nothing on it touches memory any more
  }
}

}  // namespace

void require_devices(const FlatState& flat) {
  std::vector<bool> asked(flat.sources.size());
  for (const auto& tensor : flat.tensors) {
    const auto& storage = flat.sources[tensor.source];
    if (storage.device().is_cpu() || asked[tensor.source]) continue;
    asked[tensor.source] = true;
    const auto shown = tensor.path.empty() ? std::string("the tensor") : tensor.path;
    try {
      DeviceRuntime::of(storage.device().type)
          .require_memory(storage.device(), storage.data(), storage.nbytes());
    } catch (const InvalidArgument& e) {
      throw make_error<InvalidArgument>(shown + " " + e.what(), {}, {}, tensor.path);
    } catch (const Error& e) {
      throw make_error<InvalidArgument>(
          shown + " is on " + to_string(storage.device()) + ", which cannot be used: " + e.what(),
          {}, {}, tensor.path);
    }
  }
}

bool is_on_its_device(const Storage& storage) {
  try {
    DeviceRuntime::of(storage.device().type)
        .require_memory(storage.device(), storage.data(), storage.nbytes());
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::vector<DeviceReady> record_ready(std::span<const Storage> sources,
                                      std::span<const TrainerStream> streams) {
  std::set<std::pair<DeviceType, std::int16_t>> devices;
  for (const auto& storage : sources) {
    if (!storage.device().is_cpu()) devices.emplace(storage.device().type, storage.device().index);
  }
  std::vector<TrainerStream> used;
  for (const auto& [type, index] : devices) {
    const Device device{type, index};
    const auto named = used.size();
    for (const auto& stream : streams) {
      if (stream.device == device) used.push_back(stream);
    }
    if (used.size() == named) used.push_back({device, kLegacyStream});
  }
  for (const auto& stream : used)
    DeviceRuntime::of(stream.device.type).require_not_capturing(stream);
  std::vector<DeviceReady> ready;
  for (const auto& stream : used)
    ready.push_back({stream.device, DeviceRuntime::of(stream.device.type).record(stream)});
  return ready;
}

DeviceStream& DeviceStreams::of(Device device) {
  auto& stream = streams_[device.index];
  if (!stream.valid()) stream = DeviceRuntime::of(device.type).open_stream(device);
  return stream;
}

DeviceCopies::DeviceCopies(std::span<const DevicePlace> places, std::span<const DeviceReady> ready,
                           DeviceStreams& streams, std::shared_ptr<const void> keep)
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
      on.copies = BatchedCopies(stream, CopyDirection::kToHost, on.list);
    }
  } catch (...) {
    // What was issued still happens. Without an event nobody can tell when.
    for (auto& on : devices_) {
      auto& runtime = DeviceRuntime::of(on.device.type);
      try {
        const auto event = streams.of(on.device).record();
        if (keep_ == nullptr) {
          while (!is_over(event)) std::this_thread::yield();
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
    if (is_over(on.copies.last())) continue;
    DeviceRuntime::of(on.device.type).keep(on.copies.last(), keep_);
  }
}

bool DeviceCopies::done() const noexcept {
  return std::all_of(devices_.begin(), devices_.end(),
                     [](const OnDevice& on) { return is_over(on.copies.last()); });
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
