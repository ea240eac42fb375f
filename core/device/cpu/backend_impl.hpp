#pragma once
#include <meshstage/core/device/backend.hpp>

namespace meshstage::detail {

/// The CPU as a device: everything that is issued has happened when the call returns.
const device_backend::Table& cpu_backend();

}  // namespace meshstage::detail
