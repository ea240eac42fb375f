#include <meshstage/core/replicate/results.hpp>

#include <utility>
#include <vector>

#include <meshstage/core/device/trainer_streams.hpp>
#include <meshstage/core/replicate/devices_staged.hpp>

namespace meshstage {

std::string_view to_string(Source source) noexcept {
  switch (source) {
    case Source::kNothing:
      return "nothing";
    case Source::kOwnMemory:
      return "own memory";
    case Source::kHolderMemory:
      return "holder memory";
    case Source::kDisk:
      return "disk";
  }
  return "unknown";
}

std::string_view to_string(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::kComplete:
      return "complete";
    case Outcome::kFailed:
      return "failed";
    case Outcome::kSkipped:
      return "skipped";
  }
  return "unknown";
}

std::string_view to_string(DiskOutcome outcome) noexcept {
  switch (outcome) {
    case DiskOutcome::kEverywhere:
      return "everywhere";
    case DiskOutcome::kNotDue:
      return "not due";
    case DiskOutcome::kFailed:
      break;
  }
  return "failed";
}

void Staging::before_update(const TrainerStream& stream) {
  if (!devices_ || stream.device.is_cpu()) return;
  for (const auto& [device, copied] : devices_->wait()) {
    if (device != stream.device) continue;
    auto& runtime = DeviceRuntime::of(device.type);
    runtime.require_not_capturing(stream);
    runtime.hold(stream, copied);
  }
}

void Staging::before_update(std::span<const TrainerStream> streams) {
  if (!devices_) return;
  // A device may have several streams; several events may be of one device.
  std::vector<std::pair<TrainerStream, DeviceEvent>> holds;
  for (const auto& [device, copied] : devices_->wait()) {
    for (const auto& stream : detail::streams_on(device, streams))
      holds.emplace_back(stream, copied);
  }
  for (const auto& [stream, copied] : holds)
    DeviceRuntime::of(stream.device.type).require_not_capturing(stream);
  for (const auto& [stream, copied] : holds)
    DeviceRuntime::of(stream.device.type).hold(stream, copied);
  devices_->wait_cpu_read();
}

}  // namespace meshstage
