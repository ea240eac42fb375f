#pragma once
#include <meshstage/core/device/backend.hpp>

namespace meshstage::detail {

/// The CPU as a device: each call does its work before it returns.
const device_backend::Table& cpu_backend();

}  // namespace meshstage::detail
