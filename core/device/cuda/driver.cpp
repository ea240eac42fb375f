// Finds the driver: libcuda.so.1 by dlopen, its functions by cuGetProcAddress.
#include <meshstage/core/device/cuda/driver_impl.hpp>
#include <meshstage/core/device/cuda/symbols.hpp>

namespace meshstage::cuda {
namespace {

// cuGetProcAddress with a status, and libraries of kernels: 12.0.
constexpr int kOldestDriver = 12000;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

DriverState failed(DeviceProblem problem, std::string detail, int version = 0) {
  DriverState state;
  state.problem = problem;
  state.detail = std::move(detail);
  state.version = version;
  return state;
}

std::string find_all(Driver& d, Symbols& symbols) {
  symbols.required(d.get_error_name, "cuGetErrorName", 6000);
  symbols.required(d.get_error_string, "cuGetErrorString", 6000);
  symbols.required(d.device_get, "cuDeviceGet", 2000);
  symbols.required(d.device_get_name, "cuDeviceGetName", 2000);
  symbols.required(d.device_total_mem, "cuDeviceTotalMem", 3020);
  symbols.required(d.device_get_attribute, "cuDeviceGetAttribute", 2000);
  symbols.required(d.primary_retain, "cuDevicePrimaryCtxRetain", 7000);
  symbols.required(d.push_current, "cuCtxPushCurrent", 4000);
  symbols.required(d.pop_current, "cuCtxPopCurrent", 4000);
  symbols.required(d.exchange_capture_mode, "cuThreadExchangeStreamCaptureMode", 10010);
  symbols.required(d.pointer_get_attributes, "cuPointerGetAttributes", 7000);
  symbols.required(d.mem_alloc, "cuMemAlloc", 3020);
  symbols.required(d.mem_free, "cuMemFree", 3020);
  symbols.required(d.host_register, "cuMemHostRegister", 6050);
  symbols.required(d.host_unregister, "cuMemHostUnregister", 4000);
  symbols.required(d.host_get_device_pointer, "cuMemHostGetDevicePointer", 3020);
  symbols.required(d.stream_create, "cuStreamCreate", 2000);
  symbols.required(d.stream_destroy, "cuStreamDestroy", 4000);
  symbols.required(d.stream_wait_event, "cuStreamWaitEvent", 3020);
  symbols.required(d.stream_is_capturing, "cuStreamIsCapturing", 10000);
  symbols.required(d.event_create, "cuEventCreate", 2000);
  symbols.required(d.event_destroy, "cuEventDestroy", 4000);
  symbols.required(d.event_record, "cuEventRecord", 2000);
  symbols.required(d.event_query, "cuEventQuery", 2000);
  symbols.required(d.memcpy_async, "cuMemcpyAsync", 4000);
  symbols.required(d.library_load_data, "cuLibraryLoadData", 12000);
  symbols.required(d.library_get_kernel, "cuLibraryGetKernel", 12000);
  symbols.required(d.kernel_get_function, "cuKernelGetFunction", 12000);
  symbols.required(d.launch_kernel_ex, "cuLaunchKernelEx", 11060);
  symbols.optional(d.memcpy_batch_13, "cuMemcpyBatchAsync", 13000);
  if (d.memcpy_batch_13 == nullptr)
    symbols.optional(d.memcpy_batch_12, "cuMemcpyBatchAsync", 12080);
  return symbols.missing();
}

DriverState refused_init(const Driver& driver, CUresult result, int version) {
  const auto said = describe(driver, result);
  switch (result) {
    case CUDA_ERROR_NO_DEVICE:
      return failed(DeviceProblem::kNoDevice,
                    "the driver sees no device (" + said +
                        "); look at nvidia-smi, CUDA_VISIBLE_DEVICES and the container's devices",
                    version);
    case CUDA_ERROR_NOT_PERMITTED:
    case CUDA_ERROR_OPERATING_SYSTEM:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
      return failed(DeviceProblem::kNoPermission,
                    "the driver may not open the devices (" + said +
                        "); look at the permissions of /dev/nvidia* and the container's devices",
                    version);
    case CUDA_ERROR_SYSTEM_NOT_READY:
      return failed(DeviceProblem::kNotReady,
                    "the system is not ready (" + said +
                        "); check that the fabric manager runs and has the driver's version",
                    version);
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
      return failed(DeviceProblem::kNotReady,
                    "library and kernel module of the driver differ (" + said +
                        "); restart the host after the update",
                    version);
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
      return failed(DeviceProblem::kDriverTooOld,
                    "the kernel module of the driver is older than its library (" + said + ")",
                    version);
    case CUDA_ERROR_STUB_LIBRARY:
      return failed(DeviceProblem::kNoDriver,
                    "libcuda.so.1 is the toolkit's stub (" + said +
                        "); take its folder out of LD_LIBRARY_PATH",
                    version);
    default:
      return failed(DeviceProblem::kFailed, "cuInit: " + said, version);
  }
}

}  // namespace

std::string describe(const Driver& driver, CUresult result) {
  const char* name = nullptr;
  const char* text = nullptr;
  if (driver.get_error_name == nullptr || driver.get_error_name(result, &name) != CUDA_SUCCESS ||
      name == nullptr) {
    name = "unknown";
  }
  if (driver.get_error_string == nullptr ||
      driver.get_error_string(result, &text) != CUDA_SUCCESS || text == nullptr) {
    text = "an error that the driver does not explain";
  }
  return std::string(text) + " (" + name + ", " + std::to_string(static_cast<int>(result)) + ")";
}

DriverState open_driver() {
  const auto library = open_driver_library();
  if (library.handle == nullptr) return failed(DeviceProblem::kNoDriver, library.problem);
  // By its name, for it is in every driver; all others through `get`.
  const auto get_version =
      reinterpret_cast<PFN_cuDriverGetVersion_v2020>(dlsym(library.handle, "cuDriverGetVersion"));
  int version = 0;
  if (get_version != nullptr && get_version(&version) != CUDA_SUCCESS) version = 0;
  if (library.get == nullptr || version < kOldestDriver) {
    return failed(DeviceProblem::kDriverTooOld,
                  "the driver is CUDA " + version_text(version) + ", and " +
                      version_text(kOldestDriver) + " is needed; update it (branch 525 or newer)",
                  version);
  }
  DriverState state;
  state.version = version;
  Symbols symbols(library.get);
  PFN_cuInit_v2000 init = nullptr;
  PFN_cuDeviceGetCount_v2000 get_count = nullptr;
  symbols.required(init, "cuInit", 2000);
  symbols.required(get_count, "cuDeviceGetCount", 2000);
  if (const auto missing = find_all(state.driver, symbols); !missing.empty()) {
    return failed(DeviceProblem::kDriverTooOld,
                  "the driver, CUDA " + version_text(version) + ", has no " + missing, version);
  }
  if (const auto result = init(0); result != CUDA_SUCCESS)
    return refused_init(state.driver, result, version);
  if (const auto result = get_count(&state.devices); result != CUDA_SUCCESS)
    return refused_init(state.driver, result, version);
  if (state.devices == 0) return refused_init(state.driver, CUDA_ERROR_NO_DEVICE, version);
  return state;
}

}  // namespace meshstage::cuda
