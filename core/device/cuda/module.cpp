#include <meshstage/core/device/cuda/module_impl.hpp>
#include <meshstage/core/os/module_file.hpp>

namespace meshstage::detail {

const device_backend::Table& cuda_backend() {
  const ModuleFile cuda{.library = "CUDA",
                        .file = "libmeshstage_cuda.so",
                        .table_symbol = device_backend::kTableSymbol,
                        .abi = device_backend::kBackendAbi,
                        .remedy = "MESHSTAGE_CUDA=ON (headers of the CUDA toolkit, 12.8 or newer)"};
  return *static_cast<const device_backend::Table*>(open_module(cuda));
}

}  // namespace meshstage::detail
