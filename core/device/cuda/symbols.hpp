#pragma once
// For the modules that reach the driver at run time; needs the toolkit's headers.
#include <cuda.h>
#include <dlfcn.h>

#include <cudaTypedefs.h>
#include <string>

namespace meshstage::cuda {

/// libcuda.so.1, opened by dlopen and never closed.
struct DriverLibrary {
  void* handle = nullptr;
  PFN_cuGetProcAddress_v12000 get = nullptr;  ///< Null for a driver older than CUDA 12.0.
  std::string problem;                        ///< Why there is no library; empty if there is one.
};
inline DriverLibrary open_driver_library() {
  DriverLibrary library;
  library.handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library.handle == nullptr) {
    library.problem = std::string("no NVIDIA driver: ") + dlerror();
    return library;
  }
  library.get =
      reinterpret_cast<PFN_cuGetProcAddress_v12000>(dlsym(library.handle, "cuGetProcAddress_v2"));
  return library;
}

/// The driver's functions by name, each with the version of the signature that the caller was
/// compiled against, so that a newer driver gives the same functions.
class Symbols {
 public:
  explicit Symbols(PFN_cuGetProcAddress_v12000 get) : get_(get) {}
  template <class F>
  void optional(F& function, const char* name, int version) {
    void* found = nullptr;
    CUdriverProcAddressQueryResult status{};
    if (get_(name, &found, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &status) != CUDA_SUCCESS ||
        status != CU_GET_PROC_ADDRESS_SUCCESS) {
      found = nullptr;
    }
    function = reinterpret_cast<F>(found);
  }
  template <class F>
  void required(F& function, const char* name, int version) {
    optional(function, name, version);
    if (function == nullptr && missing_.empty()) missing_ = name;
  }
  /// The first required function that the driver lacks; empty if it lacks none.
  [[nodiscard]] const std::string& missing() const noexcept { return missing_; }

 private:
  PFN_cuGetProcAddress_v12000 get_;
  std::string missing_;
};

}  // namespace meshstage::cuda
