#pragma once
#include <span>
#include <vector>

#include <meshstage/core/device/runtime.hpp>

namespace meshstage::detail {

/// The trainer's streams on a device: those of `streams` that are on it, or else its legacy stream.
[[nodiscard]] inline std::vector<TrainerStream> streams_on(Device device,
                                                           std::span<const TrainerStream> streams) {
  std::vector<TrainerStream> found;
  for (const auto& stream : streams) {
    if (stream.device == device) found.push_back(stream);
  }
  if (found.empty()) found.push_back({device, kLegacyStream});
  return found;
}

}  // namespace meshstage::detail
