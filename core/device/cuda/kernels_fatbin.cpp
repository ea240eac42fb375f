// Takes the fatbin that nvcc made of kernels.cu into the module, as read-only data.
#include <meshstage/core/device/cuda/kernels.hpp>

asm(".section .rodata\n"
    ".balign 64\n"
    ".local meshstage_kernels_fatbin\n"
    "meshstage_kernels_fatbin:\n"
    ".incbin \"" MESHSTAGE_KERNELS_FATBIN
    "\"\n"
    ".byte 0\n"
    ".previous\n");

extern "C" {
extern const unsigned char meshstage_kernels_fatbin[];
}

namespace meshstage::cuda {

const void* kernels_fatbin() noexcept { return meshstage_kernels_fatbin; }

}  // namespace meshstage::cuda
