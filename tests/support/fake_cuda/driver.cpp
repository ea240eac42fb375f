// The fake libcuda.so.1: entry points with the signatures of the toolkit's header, found by
// cuGetProcAddress_v2 as in the real one. One lock for everything.
#include <cuda.h>

#include <cudaTypedefs.h>
#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/fake_cuda/calls.hpp"
#include "tests/support/fake_cuda/control.hpp"
#include "tests/support/fake_cuda/kernels.hpp"
#include "tests/support/fake_cuda/state.hpp"

namespace meshstage::fake_cuda {
namespace {

// --- memory ---

CUresult CUDAAPI mem_alloc(CUdeviceptr* address, size_t bytes) {
  return enter("cuMemAlloc", kContext | kSafe,
               [&](auto&) { return fake().memory.allocate(current_device(), bytes, address); });
}
CUresult CUDAAPI mem_free(CUdeviceptr address) {
  return enter("cuMemFree", kContext | kSafe | kUndoes,
               [&](auto&) { return fake().memory.free(address); });
}
CUresult CUDAAPI host_register(void* begin, size_t bytes, unsigned int flags) {
  return enter("cuMemHostRegister", kContext | kSafe, [&](auto&) {
    if (bytes > (size_t{256} << 20U)) violate("more than 256 MiB are registered in one go");
    if ((flags & CU_MEMHOSTREGISTER_PORTABLE) == 0 || (flags & CU_MEMHOSTREGISTER_DEVICEMAP) == 0)
      violate("host memory is registered neither portable nor mapped");
    return fake().memory.register_host(begin, bytes);
  });
}
CUresult CUDAAPI host_unregister(void* begin) {
  return enter("cuMemHostUnregister", kContext | kSafe | kUndoes,
               [&](auto&) { return fake().memory.unregister_host(begin); });
}
CUresult CUDAAPI host_get_device_pointer(CUdeviceptr* address, void* host, unsigned int flags) {
  return enter("cuMemHostGetDevicePointer", kContext, [&](auto&) {
    const auto* const found = fake().memory.registration(host);
    if (found == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    *address = reinterpret_cast<CUdeviceptr>(found->device_address +
                                             (static_cast<std::byte*>(host) - found->begin));
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI pointer_get_attributes(unsigned int count, CUpointer_attribute* attributes,
                                        void** data, CUdeviceptr address) {
  return enter("cuPointerGetAttributes", kNothing, [&](auto&) {
    const auto* const at = reinterpret_cast<const void*>(address);
    const auto* const allocation = fake().memory.allocation(at);
    const bool device = allocation != nullptr && allocation->live;
    const bool host = fake().memory.registration(at) != nullptr;
    for (unsigned int i = 0; i < count; ++i) {
      switch (attributes[i]) {
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: {
          unsigned kind = 0;
          if (device) kind = CU_MEMORYTYPE_DEVICE;
          if (host) kind = CU_MEMORYTYPE_HOST;
          std::memcpy(data[i], &kind, sizeof(kind));
          break;
        }
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
          *static_cast<int*>(data[i]) = device ? allocation->device : host ? 0 : -2;
          break;
        case CU_POINTER_ATTRIBUTE_IS_MANAGED:
          std::memset(data[i], 0, sizeof(bool));
          break;
        default:
          return CUDA_ERROR_INVALID_VALUE;
      }
    }
    return CUDA_SUCCESS;
  });
}

// --- streams and events ---

CUresult CUDAAPI stream_create(CUstream* stream, unsigned int flags) {
  return enter("cuStreamCreate", kContext | kSafe, [&](auto&) {
    *stream = reinterpret_cast<CUstream>(
        fake().order.open(current_device(), flags != CU_STREAM_NON_BLOCKING));
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI stream_destroy(CUstream stream) {
  return enter("cuStreamDestroy", kContext | kSafe | kUndoes, [&](auto&) {
    return fake().order.close(reinterpret_cast<Stream*>(stream)) ? CUDA_SUCCESS
                                                                 : CUDA_ERROR_INVALID_HANDLE;
  });
}
CUresult CUDAAPI stream_wait_event(CUstream handle, CUevent event, unsigned int) {
  return enter("cuStreamWaitEvent", kContext, [&](auto&) {
    Stream* stream = nullptr;
    if (const auto result = find_stream(handle, &stream); result != CUDA_SUCCESS) return result;
    auto* const what = reinterpret_cast<Event*>(event);
    if (!fake().events.contains(what)) return CUDA_ERROR_INVALID_HANDLE;
    if (what->point == nullptr) return CUDA_SUCCESS;
    Operation wait;
    wait.after.push_back(what->point);
    issue(*stream, std::move(wait));
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI stream_is_capturing(CUstream handle, CUstreamCaptureStatus* status) {
  return enter("cuStreamIsCapturing", kContext, [&](auto&) {
    auto& all = fake();
    const auto value = reinterpret_cast<std::uintptr_t>(handle);
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (value <= 1) {
      for (const auto& [stream, capture] : all.captures) {
        if (stream->blocking && stream->device == current_device())
          return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      }
      return CUDA_SUCCESS;
    }
    Stream* stream = nullptr;
    if (const auto result = find_stream(handle, &stream); result != CUDA_SUCCESS) return result;
    if (all.captures.contains(stream)) *status = CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI stream_begin_capture(CUstream handle, CUstreamCaptureMode mode) {
  return enter("cuStreamBeginCapture", kContext, [&](auto&) {
    Stream* stream = nullptr;
    if (const auto result = find_stream(handle, &stream); result != CUDA_SUCCESS) return result;
    fake().captures[stream] = {mode, std::this_thread::get_id(), false};
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI stream_end_capture(CUstream handle, CUgraph* graph) {
  return enter("cuStreamEndCapture", kContext, [&](auto&) {
    auto& all = fake();
    const auto found = all.captures.find(reinterpret_cast<Stream*>(handle));
    if (found == all.captures.end()) return CUDA_ERROR_ILLEGAL_STATE;
    const bool broken = found->second.broken;
    all.captures.erase(found);
    *graph = nullptr;
    return broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
  });
}
CUresult CUDAAPI stream_synchronize(CUstream handle) {
  return enter("cuStreamSynchronize", kContext | kSafe, [&](auto& lock) {
    Stream* stream = nullptr;
    if (const auto result = find_stream(handle, &stream); result != CUDA_SUCCESS) return result;
    // The legacy stream's own end is behind every blocking stream's.
    wait_for(lock, issue(*stream, {}));
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI event_create(CUevent* event, unsigned int flags) {
  return enter("cuEventCreate", kContext | kSafe, [&](auto&) {
    if ((flags & CU_EVENT_DISABLE_TIMING) == 0) violate("an event with timing");
    auto* const fresh = new Event{current_device(), nullptr};
    fake().events.insert(fresh);
    *event = reinterpret_cast<CUevent>(fresh);
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI event_destroy(CUevent event) {
  return enter("cuEventDestroy", kContext | kUndoes, [&](auto&) {
    auto* const what = reinterpret_cast<Event*>(event);
    if (fake().events.erase(what) == 0) return CUDA_ERROR_INVALID_HANDLE;
    delete what;
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI event_record(CUevent event, CUstream handle) {
  return enter("cuEventRecord", kContext, [&](auto&) {
    auto* const what = reinterpret_cast<Event*>(event);
    Stream* stream = nullptr;
    if (const auto result = find_stream(handle, &stream); result != CUDA_SUCCESS) return result;
    if (!fake().events.contains(what) || what->device != stream->device)
      return CUDA_ERROR_INVALID_HANDLE;
    if (fake().captures.contains(stream)) violate("an event is recorded into a graph");
    what->point = issue(*stream, {});
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI event_query(CUevent event) {
  return enter("cuEventQuery", kSafe, [&](auto&) {
    auto& all = fake();
    auto* const what = reinterpret_cast<Event*>(event);
    if (!all.events.contains(what)) return CUDA_ERROR_INVALID_HANDLE;
    if (what->point == nullptr || what->point->done) return CUDA_SUCCESS;
    if (!all.held && all.order.random() % 2 == 0) all.order.step_towards(what->point);
    return CUDA_ERROR_NOT_READY;
  });
}
CUresult CUDAAPI event_synchronize(CUevent event) {
  return enter("cuEventSynchronize", kSafe, [&](auto& lock) {
    auto* const what = reinterpret_cast<Event*>(event);
    if (!fake().events.contains(what)) return CUDA_ERROR_INVALID_HANDLE;
    if (const auto point = what->point) wait_for(lock, point);
    return CUDA_SUCCESS;
  });
}

// --- kernels ---

CUresult CUDAAPI library_load_data(CUlibrary* library, const void* code, CUjit_option*, void**,
                                   unsigned int, CUlibraryOption*, void**, unsigned int) {
  return enter("cuLibraryLoadData", kNothing, [&](auto&) {
    constexpr std::uint32_t kFatbin = 0xBA55ED50;
    std::uint32_t magic = 0;
    std::memcpy(&magic, code, sizeof(magic));
    if (magic != kFatbin) return CUDA_ERROR_INVALID_IMAGE;
    *library = reinterpret_cast<CUlibrary>(const_cast<void*>(code));
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI library_get_kernel(CUkernel* kernel, CUlibrary library, const char* name) {
  return enter("cuLibraryGetKernel", kNothing, [&](auto&) {
    // A fatbin's header: magic, version, its own size, then that of what follows.
    const auto* const code = reinterpret_cast<const unsigned char*>(library);
    std::uint64_t bytes = 0;
    std::memcpy(&bytes, code + 8, sizeof(bytes));
    const auto* const found = find_kernel(name);
    if (found == nullptr || ::memmem(code, bytes, name, std::strlen(name)) == nullptr)
      return CUDA_ERROR_NOT_FOUND;
    *kernel = reinterpret_cast<CUkernel>(const_cast<Kernel*>(found));
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI kernel_get_function(CUfunction* function, CUkernel kernel) {
  return enter("cuKernelGetFunction", kContext, [&](auto&) {
    *function = reinterpret_cast<CUfunction>(kernel);
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI launch_kernel_ex(const CUlaunchConfig* config, CUfunction function,
                                  void** parameters, void** extra) {
  return enter("cuLaunchKernelEx", kContext, [&](auto&) {
    const auto& kernel = *reinterpret_cast<const Kernel*>(function);
    Stream* stream = nullptr;
    if (const auto result = find_stream(config->hStream, &stream); result != CUDA_SUCCESS)
      return result;
    const auto threads = config->blockDimX * config->blockDimY * config->blockDimZ;
    if (config->gridDimX == 0 || config->gridDimY == 0 || config->gridDimZ == 0 || threads == 0 ||
        threads > 1024 || extra != nullptr) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    const auto* const given = static_cast<const std::byte*>(parameters[0]);
    std::vector<std::byte> arguments(given, given + kernel.argument_bytes);
    Operation launch;
    launch.steps.emplace_back([&kernel, arguments = std::move(arguments)] {
      const auto broken =
          kernel.run(fake().memory, arguments, [] { return fake().order.random(); });
      if (!broken.empty()) violate(broken);
    });
    issue(*stream, std::move(launch));
    return CUDA_SUCCESS;
  });
}

// --- finding them ---

struct EntryPoint {
  const char* name;
  int version;  ///< The driver's, of this signature.
  void* function;
};
template <class F>
EntryPoint entry(const char* name, int version, std::type_identity_t<F> function) {
  return {name, version, reinterpret_cast<void*>(function)};
}

const std::vector<EntryPoint>& entry_points() {
  static const std::vector<EntryPoint> all{
      entry<PFN_cuInit_v2000>("cuInit", 2000, init),
      entry<PFN_cuDriverGetVersion_v2020>("cuDriverGetVersion", 2020, driver_get_version),
      entry<PFN_cuGetErrorName_v6000>("cuGetErrorName", 6000, get_error_name),
      entry<PFN_cuGetErrorString_v6000>("cuGetErrorString", 6000, get_error_string),
      entry<PFN_cuDeviceGetCount_v2000>("cuDeviceGetCount", 2000, device_get_count),
      entry<PFN_cuDeviceGet_v2000>("cuDeviceGet", 2000, device_get),
      entry<PFN_cuDeviceGetName_v2000>("cuDeviceGetName", 2000, device_get_name),
      entry<PFN_cuDeviceTotalMem_v3020>("cuDeviceTotalMem", 3020, device_total_mem),
      entry<PFN_cuDeviceGetAttribute_v2000>("cuDeviceGetAttribute", 2000, device_get_attribute),
      entry<PFN_cuDevicePrimaryCtxRetain_v7000>("cuDevicePrimaryCtxRetain", 7000, primary_retain),
      entry<PFN_cuDevicePrimaryCtxRelease_v11000>("cuDevicePrimaryCtxRelease", 11000,
                                                  primary_release),
      entry<PFN_cuCtxPushCurrent_v4000>("cuCtxPushCurrent", 4000, push_current),
      entry<PFN_cuCtxPopCurrent_v4000>("cuCtxPopCurrent", 4000, pop_current),
      entry<PFN_cuThreadExchangeStreamCaptureMode_v10010>("cuThreadExchangeStreamCaptureMode",
                                                          10010, exchange_capture_mode),
      entry<PFN_cuMemAlloc_v3020>("cuMemAlloc", 3020, mem_alloc),
      entry<PFN_cuMemFree_v3020>("cuMemFree", 3020, mem_free),
      entry<PFN_cuMemHostRegister_v6050>("cuMemHostRegister", 6050, host_register),
      entry<PFN_cuMemHostUnregister_v4000>("cuMemHostUnregister", 4000, host_unregister),
      entry<PFN_cuMemHostGetDevicePointer_v3020>("cuMemHostGetDevicePointer", 3020,
                                                 host_get_device_pointer),
      entry<PFN_cuPointerGetAttributes_v7000>("cuPointerGetAttributes", 7000,
                                              pointer_get_attributes),
      entry<PFN_cuStreamCreate_v2000>("cuStreamCreate", 2000, stream_create),
      entry<PFN_cuStreamDestroy_v4000>("cuStreamDestroy", 4000, stream_destroy),
      entry<PFN_cuStreamWaitEvent_v3020>("cuStreamWaitEvent", 3020, stream_wait_event),
      entry<PFN_cuStreamIsCapturing_v10000>("cuStreamIsCapturing", 10000, stream_is_capturing),
      entry<PFN_cuStreamBeginCapture_v10010>("cuStreamBeginCapture", 10010, stream_begin_capture),
      entry<PFN_cuStreamEndCapture_v10000>("cuStreamEndCapture", 10000, stream_end_capture),
      entry<PFN_cuStreamSynchronize_v2000>("cuStreamSynchronize", 2000, stream_synchronize),
      entry<PFN_cuEventCreate_v2000>("cuEventCreate", 2000, event_create),
      entry<PFN_cuEventDestroy_v4000>("cuEventDestroy", 4000, event_destroy),
      entry<PFN_cuEventRecord_v2000>("cuEventRecord", 2000, event_record),
      entry<PFN_cuEventQuery_v2000>("cuEventQuery", 2000, event_query),
      entry<PFN_cuEventSynchronize_v2000>("cuEventSynchronize", 2000, event_synchronize),
      entry<PFN_cuMemcpyAsync_v4000>("cuMemcpyAsync", 4000, memcpy_async),
      entry<PFN_cuMemcpyBatchAsync_v12080>("cuMemcpyBatchAsync", 12080, memcpy_batch_12),
      entry<PFN_cuMemcpyBatchAsync_v13000>("cuMemcpyBatchAsync", 13000, memcpy_batch_13),
      entry<PFN_cuMemsetD8Async_v3020>("cuMemsetD8Async", 3020, memset_d8_async),
      entry<PFN_cuMemcpyHtoD_v3020>("cuMemcpyHtoD", 3020, memcpy_host_to_device),
      entry<PFN_cuMemcpyDtoH_v3020>("cuMemcpyDtoH", 3020, memcpy_device_to_host),
      entry<PFN_cuLibraryLoadData_v12000>("cuLibraryLoadData", 12000, library_load_data),
      entry<PFN_cuLibraryGetKernel_v12000>("cuLibraryGetKernel", 12000, library_get_kernel),
      entry<PFN_cuKernelGetFunction_v12000>("cuKernelGetFunction", 12000, kernel_get_function),
      entry<PFN_cuLaunchKernelEx_v11060>("cuLaunchKernelEx", 11060, launch_kernel_ex)};
  return all;
}

// --- control ---

void reset(std::uint64_t seed) {
  auto& all = fake();
  const std::lock_guard lock(all.mutex);
  all.violations.clear();
  all.calls.clear();
  all.all_calls = 0;
  all.fail_at = 0;
  all.damage_at = 0;
  all.held = false;
  all.init_result = CUDA_SUCCESS;
  all.version = 13000;
  all.devices = 2;
  all.captures.clear();
  all.order.reseed(seed);
  all.changed.notify_all();
}

constexpr Control kControl{reset,
                           [](bool held) {
                             const std::lock_guard lock(fake().mutex);
                             fake().held = held;
                             fake().changed.notify_all();
                           },
                           [] {
                             const std::lock_guard lock(fake().mutex);
                             return fake().order.pending();
                           },
                           [](std::uint64_t n, int result) {
                             const std::lock_guard lock(fake().mutex);
                             fake().fail_at = n;
                             fake().fail_name.clear();
                             fake().fail_with = static_cast<CUresult>(result);
                           },
                           [](const char* name, std::uint64_t n, int result) {
                             const std::lock_guard lock(fake().mutex);
                             fake().fail_at = n;
                             fake().fail_name = name;
                             fake().fail_with = static_cast<CUresult>(result);
                           },
                           [](const char* name) -> std::uint64_t {
                             const std::lock_guard lock(fake().mutex);
                             if (name == nullptr) return fake().all_calls;
                             const auto found = fake().calls.find(name);
                             return found == fake().calls.end() ? 0 : found->second;
                           },
                           [](std::uint64_t n, bool drop) {
                             const std::lock_guard lock(fake().mutex);
                             fake().damage_at = n;
                             fake().damage_drops = drop;
                           },
                           [](int init_result, int version, int devices) {
                             const std::lock_guard lock(fake().mutex);
                             fake().init_result = static_cast<CUresult>(init_result);
                             fake().version = version;
                             fake().devices = std::min(devices, kMostDevices);
                           },
                           [] {
                             const std::lock_guard lock(fake().mutex);
                             static std::string said;
                             said = fake().violations;
                             return said.c_str();
                           },
                           [] {
                             const std::lock_guard lock(fake().mutex);
                             return fake().memory.device_bytes();
                           },
                           [] {
                             const std::lock_guard lock(fake().mutex);
                             return fake().memory.registered_bytes();
                           },
                           [] {
                             const std::lock_guard lock(fake().mutex);
                             return fake().order.open_streams();
                           }};

// --- for other fakes ---

constexpr Streams kStreams{
    [](bool locked) { locked ? fake().mutex.lock() : fake().mutex.unlock(); },
    [](void* handle, std::function<bool()> gate, std::function<void()> happens) {
      Stream* stream = nullptr;
      if (find_stream(static_cast<CUstream>(handle), &stream) != CUDA_SUCCESS) return false;
      Operation operation;
      operation.gate = std::move(gate);
      operation.steps.push_back(std::move(happens));
      issue(*stream, std::move(operation));
      return true;
    },
    [](const void* address, std::size_t bytes) -> std::byte* {
      const auto& memory = fake().memory;
      if (memory.kind(address, bytes) != Memory::Kind::kDevice ||
          !memory.allocation(address)->live) {
        return nullptr;
      }
      return memory.reach(address);
    },
    current_device, violate};

}  // namespace
}  // namespace meshstage::fake_cuda

#define MESHSTAGE_FAKE_EXPORT extern "C" __attribute__((visibility("default")))

#undef cuGetProcAddress_v2
MESHSTAGE_FAKE_EXPORT CUresult CUDAAPI cuGetProcAddress_v2(const char* symbol, void** function,
                                                           int version, cuuint64_t flags,
                                                           CUdriverProcAddressQueryResult* status) {
  using namespace meshstage::fake_cuda;
  *function = nullptr;
  *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  if (flags != CU_GET_PROC_ADDRESS_LEGACY_STREAM) return CUDA_ERROR_INVALID_VALUE;
  // The newest signature that is no newer than what is asked for, nor than the driver.
  int driver = 0;
  driver_get_version(&driver);
  int best = 0;
  for (const auto& one : entry_points()) {
    if (std::strcmp(one.name, symbol) != 0) continue;
    if (one.version > version || one.version > driver) {
      if (best == 0) *status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
      continue;
    }
    if (one.version < best) continue;
    best = one.version;
    *function = one.function;
    *status = CU_GET_PROC_ADDRESS_SUCCESS;
  }
  return CUDA_SUCCESS;
}

MESHSTAGE_FAKE_EXPORT CUresult CUDAAPI cuDriverGetVersion(int* version) {
  return meshstage::fake_cuda::driver_get_version(version);
}

MESHSTAGE_FAKE_EXPORT const meshstage::fake_cuda::Streams* meshstage_fake_cuda_streams() {
  return &meshstage::fake_cuda::kStreams;
}

MESHSTAGE_FAKE_EXPORT const meshstage::fake_cuda::Control* meshstage_fake_cuda_control() {
  return &meshstage::fake_cuda::kControl;
}
