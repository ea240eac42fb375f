// Finds NCCL and the driver at run time, so that the module links neither.
#include <dlfcn.h>

#include <meshstage/core/comm/nccl/library_impl.hpp>
#include <meshstage/core/comm/nccl/module_table_impl.hpp>
#include <meshstage/core/device/cuda/symbols.hpp>

namespace meshstage::nccl {
namespace {

// Non-blocking communicators that may be aborted while they connect.
constexpr int kOldestVersion = NCCL_VERSION(2, 18, 1);

template <class F>
void find(void* library, F& function, const char* name, std::string* missing) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (function == nullptr && missing != nullptr && missing->empty()) *missing = name;
}

std::string find_all(void* library, Library& all) {
  std::string missing;
  find(library, all.get_version, "ncclGetVersion", &missing);
  find(library, all.get_unique_id, "ncclGetUniqueId", &missing);
  find(library, all.get_error_string, "ncclGetErrorString", &missing);
  find(library, all.comm_init_rank_config, "ncclCommInitRankConfig", &missing);
  find(library, all.comm_get_async_error, "ncclCommGetAsyncError", &missing);
  find(library, all.comm_finalize, "ncclCommFinalize", &missing);
  find(library, all.comm_destroy, "ncclCommDestroy", &missing);
  find(library, all.comm_abort, "ncclCommAbort", &missing);
  find(library, all.group_start, "ncclGroupStart", &missing);
  find(library, all.group_end, "ncclGroupEnd", &missing);
  find(library, all.send, "ncclSend", &missing);
  find(library, all.receive, "ncclRecv", &missing);
  find(library, all.broadcast, "ncclBroadcast", &missing);
  find(library, all.all_gather, "ncclAllGather", &missing);
  find(library, all.all_reduce, "ncclAllReduce", &missing);
  find(library, all.reduce_scatter, "ncclReduceScatter", &missing);
  find(library, all.get_last_error, "ncclGetLastError", nullptr);
  return missing;
}

}  // namespace

Loaded load_library() {
  constexpr char kName[] = "libnccl.so.2";
  Loaded loaded;
  void* library = dlopen(kName, RTLD_NOW | RTLD_NOLOAD);
  // Or inside another library or the program. RTLD_DEFAULT may be a null pointer.
  const bool in_scope = library == nullptr && dlsym(RTLD_DEFAULT, "ncclGetVersion") != nullptr;
  if (in_scope) library = RTLD_DEFAULT;
  if (library == nullptr && !in_scope) {
    dlerror();
    library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* const said = dlerror();
      loaded.problem = std::string("no NCCL: ") + (said != nullptr ? said : kName) +
                       "; add its folder to LD_LIBRARY_PATH (pip's package nvidia-nccl has it in "
                       "nvidia/nccl/lib)";
      return loaded;
    }
  }
  const auto missing = find_all(library, loaded.library);
  Dl_info where{};
  if (loaded.library.get_version != nullptr &&
      dladdr(reinterpret_cast<void*>(loaded.library.get_version), &where) != 0 &&
      where.dli_fname != nullptr) {
    loaded.path = where.dli_fname;
  }
  if (loaded.library.get_version != nullptr &&
      loaded.library.get_version(&loaded.version) != ncclSuccess) {
    loaded.version = 0;
  }
  if (!missing.empty()) {
    loaded.problem = "NCCL has no " + missing + " (" + loaded.path + ")";
  } else if (loaded.version < kOldestVersion) {
    loaded.problem = "NCCL " + nccl_module::version_text(loaded.version) + " (" + loaded.path +
                     ") is older than " + nccl_module::version_text(kOldestVersion);
  }
  return loaded;
}

std::string load_driver(Driver& driver) {
  const auto library = cuda::open_driver_library();
  if (library.handle == nullptr) return library.problem;
  if (library.get == nullptr) return "the driver is older than CUDA 12.0";
  cuda::Symbols symbols(library.get);
  symbols.required(driver.init, "cuInit", 2000);
  symbols.required(driver.device_get, "cuDeviceGet", 2000);
  symbols.required(driver.primary_retain, "cuDevicePrimaryCtxRetain", 7000);
  symbols.required(driver.primary_release, "cuDevicePrimaryCtxRelease", 11000);
  symbols.required(driver.push_current, "cuCtxPushCurrent", 4000);
  symbols.required(driver.pop_current, "cuCtxPopCurrent", 4000);
  symbols.required(driver.exchange_capture_mode, "cuThreadExchangeStreamCaptureMode", 10010);
  symbols.required(driver.stream_create, "cuStreamCreate", 2000);
  symbols.required(driver.stream_destroy, "cuStreamDestroy", 4000);
  const auto& missing = symbols.missing();
  return missing.empty() ? "" : "the driver has no " + missing;
}

}  // namespace meshstage::nccl
