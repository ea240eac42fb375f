#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

#include <meshstage/core/device/runtime.hpp>

namespace meshstage::python {

/// cuda_problem().
void bind_cuda(nanobind::module_& module);

/// Stands for the CPU where Python gives the number of a CUDA device.
inline constexpr int kNoCudaDevice = -1;

[[nodiscard]] inline Device device_of(int cuda_device) {
  if (cuda_device == kNoCudaDevice) return kCpu;
  return {DeviceType::kCuda, static_cast<std::int16_t>(cuda_device)};
}

/// Why no CUDA device can be used, and what helps; empty if they can. Opens the module and the
/// driver at the first call, and makes no context. Needs the GIL.
[[nodiscard]] const std::string& cuda_problem();

}  // namespace meshstage::python
