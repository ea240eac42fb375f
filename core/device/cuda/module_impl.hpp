#pragma once
#include <meshstage/core/device/backend.hpp>

namespace meshstage::detail {

/// The CUDA module, libmeshstage_cuda.so, opened at the first call and never closed; sought as
/// every module, and throws what open_module() does. Threads: any.
const device_backend::Table& cuda_backend();

}  // namespace meshstage::detail
