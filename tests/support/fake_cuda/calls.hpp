#pragma once
#include <cuda.h>

/// The driver's calls that driver.cpp hands out and that stand in other files.
namespace meshstage::fake_cuda {

// devices.cpp
CUresult CUDAAPI init(unsigned int flags);
CUresult CUDAAPI driver_get_version(int* version);
CUresult CUDAAPI get_error_name(CUresult error, const char** text);
CUresult CUDAAPI get_error_string(CUresult error, const char** text);
CUresult CUDAAPI device_get_count(int* count);
CUresult CUDAAPI device_get(CUdevice* device, int ordinal);
CUresult CUDAAPI device_get_name(char* name, int length, CUdevice device);
CUresult CUDAAPI device_total_mem(size_t* bytes, CUdevice);
CUresult CUDAAPI device_get_attribute(int* value, CUdevice_attribute what, CUdevice);
CUresult CUDAAPI primary_retain(CUcontext* context, CUdevice device);
CUresult CUDAAPI primary_release(CUdevice device);
CUresult CUDAAPI push_current(CUcontext context);
CUresult CUDAAPI pop_current(CUcontext* context);
CUresult CUDAAPI exchange_capture_mode(CUstreamCaptureMode* mode);

// copies.cpp
CUresult CUDAAPI memcpy_async(CUdeviceptr target, CUdeviceptr source, size_t bytes,
                              CUstream handle);
CUresult CUDAAPI memcpy_batch_13(CUdeviceptr* targets, CUdeviceptr* sources, size_t* sizes,
                                 size_t count, CUmemcpyAttributes* attributes, size_t* indices,
                                 size_t attribute_count, CUstream stream);
CUresult CUDAAPI memcpy_batch_12(CUdeviceptr* targets, CUdeviceptr* sources, size_t* sizes,
                                 size_t count, CUmemcpyAttributes* attributes, size_t* indices,
                                 size_t attribute_count, size_t* failed, CUstream stream);
CUresult CUDAAPI memset_d8_async(CUdeviceptr target, unsigned char value, size_t bytes,
                                 CUstream handle);
CUresult CUDAAPI memcpy_host_to_device(CUdeviceptr target, const void* source, size_t bytes);
CUresult CUDAAPI memcpy_device_to_host(void* target, CUdeviceptr source, size_t bytes);

}  // namespace meshstage::fake_cuda
