// What there is: the driver, its devices and their contexts.
#include <cstdio>
#include <map>
#include <utility>

#include "tests/support/fake_cuda/calls.hpp"
#include "tests/support/fake_cuda/state.hpp"

namespace meshstage::fake_cuda {

CUresult CUDAAPI init(unsigned int flags) {
  auto& all = fake();
  const std::lock_guard lock(all.mutex);
  ++all.calls["cuInit"];
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (all.init_result == CUDA_SUCCESS) all.initialized = true;
  return all.init_result;
}
CUresult CUDAAPI driver_get_version(int* version) {
  const std::lock_guard lock(fake().mutex);
  *version = fake().version;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI get_error_name(CUresult error, const char** text) {
  static const std::map<int, const char*> names{{0, "CUDA_SUCCESS"},
                                                {1, "CUDA_ERROR_INVALID_VALUE"},
                                                {2, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                {100, "CUDA_ERROR_NO_DEVICE"},
                                                {201, "CUDA_ERROR_INVALID_CONTEXT"},
                                                {304, "CUDA_ERROR_OPERATING_SYSTEM"},
                                                {400, "CUDA_ERROR_INVALID_HANDLE"},
                                                {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                                                {802, "CUDA_ERROR_SYSTEM_NOT_READY"},
                                                {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}};
  const auto found = names.find(static_cast<int>(error));
  if (found == names.end()) return CUDA_ERROR_INVALID_VALUE;
  *text = found->second;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI get_error_string(CUresult error, const char** text) {
  const char* name = nullptr;
  if (get_error_name(error, &name) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_VALUE;
  *text = "as the fake says";
  return CUDA_SUCCESS;
}
CUresult CUDAAPI device_get_count(int* count) {
  return enter("cuDeviceGetCount", kNothing, [&](auto&) {
    *count = fake().devices;
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI device_get(CUdevice* device, int ordinal) {
  return enter("cuDeviceGet", kNothing, [&](auto&) {
    if (ordinal < 0 || ordinal >= fake().devices) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI device_get_name(char* name, int length, CUdevice device) {
  return enter("cuDeviceGetName", kNothing, [&](auto&) {
    std::snprintf(name, static_cast<std::size_t>(length), "Fake GPU %d", device);
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI device_total_mem(size_t* bytes, CUdevice) {
  return enter("cuDeviceTotalMem", kNothing, [&](auto&) {
    *bytes = size_t{1} << 30U;
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI device_get_attribute(int* value, CUdevice_attribute what, CUdevice) {
  return enter("cuDeviceGetAttribute", kNothing, [&](auto&) {
    switch (what) {
      case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = 9;
        return CUDA_SUCCESS;
      case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = 0;
        return CUDA_SUCCESS;
      case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = 4;
        return CUDA_SUCCESS;
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
  });
}

// --- contexts ---

CUresult CUDAAPI primary_retain(CUcontext* context, CUdevice device) {
  return enter("cuDevicePrimaryCtxRetain", kSafe, [&](auto&) {
    if (device < 0 || device >= fake().devices) return CUDA_ERROR_INVALID_DEVICE;
    ++fake().contexts[static_cast<std::size_t>(device)];
    *context = context_of(device);
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI primary_release(CUdevice device) {
  return enter("cuDevicePrimaryCtxRelease", kSafe | kUndoes, [&](auto&) {
    auto& retained = fake().contexts[static_cast<std::size_t>(device)];
    if (retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    --retained;
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI push_current(CUcontext context) {
  return enter("cuCtxPushCurrent", kNothing, [&](auto&) {
    for (int i = 0; i < kMostDevices; ++i) {
      if (context != context_of(i) || fake().contexts[static_cast<std::size_t>(i)] == 0) continue;
      current.push_back(context);
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_CONTEXT;
  });
}
CUresult CUDAAPI pop_current(CUcontext* context) {
  // Not failed on demand: a thread would keep the context.
  if (current.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = current.back();
  current.pop_back();
  return CUDA_SUCCESS;
}
CUresult CUDAAPI exchange_capture_mode(CUstreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return CUDA_SUCCESS;
}

}  // namespace meshstage::fake_cuda
