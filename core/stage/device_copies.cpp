#include <algorithm>
#include <set>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/device_copies_impl.hpp>

namespace meshstage::detail {
namespace {

// A copy engine is busy with a run of this size for longer than issuing it takes; a kernel copies
// smaller ones faster.
constexpr std::uint64_t kGatherBelow = std::uint64_t{256} << 10U;
// An address that is no multiple of this slows a copy engine down.
constexpr std::uintptr_t kEngineAlignment = 16;
constexpr std::uint64_t kBatchBytes = std::uint64_t{32} << 20U;
constexpr std::uint64_t kLargestCopy = std::uint64_t{64} << 20U;

bool is_gathered(const DevicePlace& place) {
  const auto odd = [](const std::byte* p) {
    return reinterpret_cast<std::uintptr_t>(p) % kEngineAlignment != 0;
  };
  return place.from->nbytes() < kGatherBelow || odd(place.from->data()) || odd(place.to.data());
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
    : gathered_(places.size()), keep_(std::move(keep)) {
  device_of_.reserve(places.size());
  for (const auto& place : places) {
    const auto device = place.from->device();
    auto on = std::find_if(devices_.begin(), devices_.end(),
                           [&](const OnDevice& one) { return one.device == device; });
    if (on == devices_.end()) {
      if (devices_.size() == UINT8_MAX) throw InvalidArgument("tensors on more than 255 devices");
      devices_.push_back({device, {}, {}, {}});
      on = std::prev(devices_.end());
    }
    device_of_.push_back(static_cast<std::uint8_t>(on - devices_.begin()));
  }
  try {
    for (auto& on : devices_) {
      auto& stream = streams.of(on.device);
      for (const auto& before : ready) {
        if (before.device == on.device) stream.wait(before.event);
      }
      issue(on, places, stream);
    }
  } catch (...) {
    // What was issued still happens. Without an event nobody can tell when.
    for (auto& on : devices_) {
      auto& runtime = DeviceRuntime::of(on.device.type);
      try {
        runtime.keep(streams.of(on.device).record(), keep_);
      } catch (const Error&) {
        runtime.keep_for_good(keep_);
      }
    }
    throw;
  }
}

void DeviceCopies::issue(OnDevice& on, std::span<const DevicePlace> places, DeviceStream& stream) {
  std::vector<DeviceCopy> small, batch;
  std::uint64_t in_batch = 0;
  const auto mine = [&](std::size_t i) { return &devices_[device_of_[i]] == &on; };
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (!mine(i) || places[i].to.empty() || !is_gathered(places[i])) continue;
    gathered_[i] = true;
    small.push_back({places[i].to.data(), places[i].from->data(), places[i].to.size()});
  }
  if (!small.empty()) {
    stream.gather(CopyDirection::kToHost, small);
    on.gathered = on.last = stream.record();
  }
  const auto flush = [&](std::size_t place, std::uint64_t end) {
    if (batch.empty()) return;
    stream.copy(CopyDirection::kToHost, batch);
    on.last = stream.record();
    on.marks.push_back({place, end, on.last});
    batch.clear();
    in_batch = 0;
  };
  std::size_t last = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (!mine(i) || gathered_[i]) continue;
    const auto& [from, to] = places[i];
    for (std::uint64_t at = 0; at < to.size();) {
      const auto n = std::min<std::uint64_t>(to.size() - at, kLargestCopy - in_batch);
      batch.push_back({to.data() + at, from->data() + at, n});
      in_batch += n;
      at += n;
      if (in_batch >= kBatchBytes) flush(i, at);
    }
    last = i;
  }
  if (!batch.empty()) flush(last, places[last].to.size());
}

DeviceCopies::~DeviceCopies() {
  for (const auto& on : devices_) {
    try {
      if (on.last.done()) continue;
    } catch (const Error&) {
      continue;  // the device failed: nothing on it touches memory any more
    }
    DeviceRuntime::of(on.device.type).keep(on.last, keep_);
  }
}

void DeviceCopies::wait(std::size_t place, std::uint64_t bytes, Watermark& progress) const {
  const auto& on = devices_[device_of_[place]];
  const auto check = [&progress] { progress.throw_if_failed(); };
  if (gathered_[place]) return on.gathered.wait(Deadline::never(), check);
  const auto mark =
      std::lower_bound(on.marks.begin(), on.marks.end(), std::pair{place, bytes},
                       [](const Mark& a, const std::pair<std::size_t, std::uint64_t>& b) {
                         return std::pair{a.place, a.end} < b;
                       });
  if (mark != on.marks.end()) mark->event.wait(Deadline::never(), check);
}

void DeviceCopies::wait_all(Watermark& progress) const {
  for (const auto& on : devices_)
    on.last.wait(Deadline::never(), [&progress] { progress.throw_if_failed(); });
}

DeviceEvent DeviceCopies::staged(Device device) const {
  for (const auto& on : devices_) {
    if (on.device == device) return on.last;
  }
  return {};
}

}  // namespace meshstage::detail
