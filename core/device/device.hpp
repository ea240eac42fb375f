#pragma once
#include <cstdint>
#include <string>

namespace meshstage {

enum class DeviceType : std::uint8_t { kCpu = 0, kCuda = 1 };

/// The device that memory is on. A plain value: making one opens no device.
struct Device {
  DeviceType type = DeviceType::kCpu;
  std::int16_t index = 0;  ///< The device's number among those of its type; always 0 for the CPU.
  friend bool operator==(const Device&, const Device&) = default;
  [[nodiscard]] constexpr bool is_cpu() const noexcept { return type == DeviceType::kCpu; }
};

inline constexpr Device kCpu{};

/// "cpu" or "cuda:1".
inline std::string to_string(Device device) {
  return device.is_cpu() ? "cpu" : "cuda:" + std::to_string(device.index);
}

}  // namespace meshstage
