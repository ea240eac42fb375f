#pragma once
// Part of the module libmeshstage_cuda.so; needs the toolkit's headers.
#include <cuda.h>

#include <cudaTypedefs.h>
#include <cstdint>
#include <string>

#include <meshstage/core/device/backend.hpp>
#include <meshstage/core/device/runtime.hpp>

namespace meshstage::cuda {

/// cuMemcpyBatchAsync as it was before 13.0, with one parameter more.
using MemcpyBatchAsync12 = CUresult(CUDAAPI*)(CUdeviceptr*, CUdeviceptr*, size_t*, size_t,
                                              CUmemcpyAttributes*, size_t*, size_t, size_t*,
                                              CUstream);
using MemcpyBatchAsync13 = CUresult(CUDAAPI*)(CUdeviceptr*, CUdeviceptr*, size_t*, size_t,
                                              CUmemcpyAttributes*, size_t*, size_t, CUstream);

/// The driver's entry points, each with the version whose signature the name ends in. Null only
/// where a comment says that a driver may lack it.
struct Driver {
  PFN_cuGetErrorName_v6000 get_error_name;
  PFN_cuGetErrorString_v6000 get_error_string;
  PFN_cuDeviceGet_v2000 device_get;
  PFN_cuDeviceGetName_v2000 device_get_name;
  PFN_cuDeviceTotalMem_v3020 device_total_mem;
  PFN_cuDeviceGetAttribute_v2000 device_get_attribute;
  PFN_cuDevicePrimaryCtxRetain_v7000 primary_retain;
  PFN_cuCtxPushCurrent_v4000 push_current;
  PFN_cuCtxPopCurrent_v4000 pop_current;
  PFN_cuThreadExchangeStreamCaptureMode_v10010 exchange_capture_mode;
  PFN_cuPointerGetAttributes_v7000 pointer_get_attributes;
  PFN_cuMemAlloc_v3020 mem_alloc;
  PFN_cuMemFree_v3020 mem_free;
  PFN_cuMemHostRegister_v6050 host_register;
  PFN_cuMemHostUnregister_v4000 host_unregister;
  PFN_cuMemHostGetDevicePointer_v3020 host_get_device_pointer;
  PFN_cuStreamCreate_v2000 stream_create;
  PFN_cuStreamDestroy_v4000 stream_destroy;
  PFN_cuStreamWaitEvent_v3020 stream_wait_event;
  PFN_cuStreamIsCapturing_v10000 stream_is_capturing;
  PFN_cuEventCreate_v2000 event_create;
  PFN_cuEventDestroy_v4000 event_destroy;
  PFN_cuEventRecord_v2000 event_record;
  PFN_cuEventQuery_v2000 event_query;
  PFN_cuMemcpyAsync_v4000 memcpy_async;
  PFN_cuLibraryLoadData_v12000 library_load_data;
  PFN_cuLibraryGetKernel_v12000 library_get_kernel;
  PFN_cuKernelGetFunction_v12000 kernel_get_function;
  PFN_cuLaunchKernelEx_v11060 launch_kernel_ex;
  MemcpyBatchAsync13 memcpy_batch_13;  // from 13.0 on
  MemcpyBatchAsync12 memcpy_batch_12;  // from 12.8 on, asked for where the other is missing
};

/// The result of open_driver().
struct DriverState {
  DeviceProblem problem = DeviceProblem::kNone;
  std::string detail;
  int version = 0;  ///< 13000 for 13.0; 0 if there is no driver.
  int devices = 0;
  Driver driver{};  ///< Filled if the problem is kNone.
};

/// Opens libcuda.so.1 and asks it for its version and devices; makes no context. Every call asks
/// anew, because a driver that is not ready may be ready later. The library stays open.
DriverState open_driver();

/// "out of memory (CUDA_ERROR_OUT_OF_MEMORY, 2)".
std::string describe(const Driver& driver, CUresult result);

}  // namespace meshstage::cuda
