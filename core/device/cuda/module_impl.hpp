#pragma once
#include <meshstage/core/device/backend.hpp>

namespace meshstage::detail {

/// The CUDA module, libmeshstage_cuda.so, opened at the first call and never closed; it is sought
/// like every module. Throws what open_module() throws. Threads: any.
const device_backend::Table& cuda_backend();

}  // namespace meshstage::detail
