#pragma once
// Part of the module libmeshstage_nccl.so; needs the headers of NCCL and of CUDA.
#include <cuda.h>
#include <nccl.h>

#include <cudaTypedefs.h>
#include <string>

namespace meshstage::nccl {

/// NCCL's functions, found at run time. Null only where a comment says that a library may lack one.
struct Library {
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclGetErrorString) get_error_string;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config;
  decltype(&ncclCommGetAsyncError) comm_get_async_error;
  decltype(&ncclCommFinalize) comm_finalize;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) receive;
  decltype(&ncclBroadcast) broadcast;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclReduceScatter) reduce_scatter;
  decltype(&ncclGetLastError) get_last_error;  // may be null: text for people
};

/// The few functions of the driver that a communicator's thread needs.
struct Driver {
  PFN_cuInit_v2000 init;
  PFN_cuDeviceGet_v2000 device_get;
  PFN_cuDevicePrimaryCtxRetain_v7000 primary_retain;
  PFN_cuDevicePrimaryCtxRelease_v11000 primary_release;
  PFN_cuCtxPushCurrent_v4000 push_current;
  PFN_cuCtxPopCurrent_v4000 pop_current;
  PFN_cuThreadExchangeStreamCaptureMode_v10010 exchange_capture_mode;
  PFN_cuStreamCreate_v2000 stream_create;
  PFN_cuStreamDestroy_v4000 stream_destroy;
};

/// The first NCCL that the module may use: the one in the process already, by its bare name, then
/// in the default scope (a framework may carry it inside another library), else the dynamic
/// linker's. Opened once; tried again where it failed.
struct Loaded {
  Library library{};
  int version = 0;
  std::string path;
  std::string problem;  ///< Empty if the library can be used.
};
Loaded load_library();

/// Fills the driver's functions; returns what is wrong, or nothing.
std::string load_driver(Driver& driver);

}  // namespace meshstage::nccl
