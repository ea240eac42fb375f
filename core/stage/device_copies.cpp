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

DeviceStream& DeviceStreams::open(ByIndex& streams, Device device) {
  auto& stream = streams[device.index];
  if (!stream.valid()) stream = DeviceRuntime::of(device.type).open_stream(device);
  return stream;
}

std::vector<DeviceStream*> DeviceStreams::made(Device device) {
  std::vector<DeviceStream*> found;
  for (auto* const streams : {&copying_, &digesting_}) {
    const auto it = streams->find(device.index);
    if (it != streams->end() && it->second.valid()) found.push_back(&it->second);
  }
  return found;
}

DeviceCopies::DeviceCopies(std::span<const DevicePlace> places, std::span<const DeviceReady> ready,
                           DeviceStreams& streams, std::shared_ptr<const void> keep,
                           CopyDirection direction, std::shared_ptr<const DigestedBlocks> blocks)
    : blocks_(std::move(blocks)), keep_(std::move(keep)) {
  where_.reserve(places.size());
  for (const auto& place : places) {
    auto& on = on_device(place.from->device());
    where_.push_back({static_cast<std::uint32_t>(&on - devices_.data()),
                      static_cast<std::uint32_t>(on.list.size())});
    on.list.push_back({place.to.data(), place.from->data(), place.to.size()});
  }
  try {
    for (auto& on : devices_) issue(on, ready, streams, direction);
  } catch (...) {
    // What was issued still happens. Without an event nobody can tell when.
    for (auto& on : devices_) {
      auto& runtime = DeviceRuntime::of(on.device.type);
      for (auto* const stream : streams.made(on.device)) {
        try {
          const auto event = stream->record();
          if (keep_ == nullptr) {
            while (!event.over()) std::this_thread::yield();
          } else {
            runtime.keep(event, keep_);
          }
        } catch (const std::exception&) {  // the device failed, or there is no memory for an event
          runtime.keep_for_good(keep_);
        }
      }
    }
    throw;
  }
}

const DeviceCopies::OnDevice* DeviceCopies::find(Device device) const noexcept {
  for (const auto& on : devices_) {
    if (on.device == device) return &on;
  }
  return nullptr;
}

DeviceCopies::OnDevice& DeviceCopies::on_device(Device device) {
  if (const auto* const on = find(device)) return const_cast<OnDevice&>(*on);
  return devices_.emplace_back(OnDevice{device, {}, {}, {}, {}});
}

void DeviceCopies::issue(OnDevice& on, std::span<const DeviceReady> ready, DeviceStreams& streams,
                         CopyDirection direction) {
  const auto behind_ready = [&](DeviceStream& stream) {
    for (const auto& before : ready) {
      if (before.device == on.device) stream.wait(before.event);
    }
  };
  // First, because copies into memory that is not page-locked block this thread.
  if (blocks_ != nullptr) {
    for (const auto& [device, blocks, runs] : blocks_->devices) {
      if (device != on.device) continue;
      auto& stream = streams.digesting(device);
      behind_ready(stream);
      on.digests = stream.digest(blocks, runs);
    }
  }
  auto& stream = streams.of(on.device);
  behind_ready(stream);
  on.copies = BatchedCopies(stream, direction, on.list);
  on.last = on.copies.last();
  if (on.digests.all == nullptr) return;
  stream.wait(on.digests.made);
  on.last = stream.record();
}

DeviceCopies::~DeviceCopies() {
  for (const auto& on : devices_) {
    if (on.over()) continue;
    DeviceRuntime::of(on.device.type).keep(on.last, keep_);
  }
}

bool DeviceCopies::done() const noexcept {
  return std::all_of(devices_.begin(), devices_.end(),
                     [](const OnDevice& on) { return on.over(); });
}

void DeviceCopies::wait(std::size_t place, std::uint64_t bytes, Watermark& progress) const {
  const auto [device, copy] = where_[place];
  devices_[device].copies.behind(copy, bytes).wait(Deadline::never(), [&progress] {
    progress.throw_if_failed();
  });
}

void DeviceCopies::wait_all(Watermark& progress) const {
  for (const auto& on : devices_)
    on.last.wait(Deadline::never(), [&progress] { progress.throw_if_failed(); });
}

bool DeviceCopies::digests(std::size_t block) const noexcept {
  return blocks_ != nullptr && block < blocks_->where.size() && blocks_->where[block].has_value();
}

DeviceDigest DeviceCopies::digest(std::size_t block, Watermark& progress) const {
  const auto [index, at] = *blocks_->where[block];
  const auto* const on = find(blocks_->devices[index].device);
  on->digests.made.wait(Deadline::never(), [&progress] { progress.throw_if_failed(); });
  return on->digests.all[at];
}

DeviceEvent DeviceCopies::staged(Device device) const {
  const auto* const on = find(device);
  return on == nullptr ? DeviceEvent() : on->last;
}

}  // namespace meshstage::detail
