#pragma once
#include <cstdint>

namespace meshstage {

/// Whether tensors on devices are first copied inside their devices. The trainer may change them
/// after that copy, which does not leave the device.
enum class Snapshot : std::uint8_t {
  kOff,   ///< No: the trainer's next update comes behind the copies to the host.
  kAuto,  ///< Yes, if there is memory for it: as much again on each device as the tensors there.
};

}  // namespace meshstage
