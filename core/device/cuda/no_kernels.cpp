// Built where there is no nvcc: batches alone.
#include <meshstage/core/device/cuda/kernels.hpp>

namespace meshstage::cuda {

const void* kernels_fatbin() noexcept { return nullptr; }

}  // namespace meshstage::cuda
