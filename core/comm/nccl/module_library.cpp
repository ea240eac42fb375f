// The module libmeshstage_nccl.so: a table over NCCL. It links nothing of NCCL and CUDA. With
// library.cpp the only file that includes their headers. See module_table_impl.hpp.
#include <array>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/nccl/library_impl.hpp>
#include <meshstage/core/comm/nccl/module_table_impl.hpp>

namespace meshstage::nccl_module {

struct Communicator {
  CUdevice device = 0;
  CUstream stream = nullptr;
  CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  ncclComm_t comm = nullptr;
  bool finished = false;
};

namespace {

// Opened once for the process; the functions do not change after.
struct Opened {
  Mutex mutex;
  bool loaded MESHSTAGE_GUARDED_BY(mutex) = false;
  nccl::Library library{};
  nccl::Driver driver{};
};
Opened& opened() {
  static Opened all;
  return all;
}

void put(ErrorText* error, const std::string& text) {
  std::snprintf(error->text, sizeof(error->text), "%s", text.c_str());
}

// Runs `f`; an exception (of an allocation) becomes text and kFailed.
template <class F>
Result guarded(ErrorText* error, F&& f) noexcept {
  try {
    return f();
  } catch (const std::exception& e) {
    std::snprintf(error->text, sizeof(error->text), "%s", e.what());
  }
  return kFailed;
}

Result check(CUresult result, const char* call, ErrorText* error) {
  if (result == CUDA_SUCCESS) return kDone;
  put(error, std::string(call) + ": CUDA error " + std::to_string(static_cast<int>(result)));
  return kFailed;
}

// What a call of NCCL came to; the last error is read while the communicator is still there.
Result check(ncclResult_t result, const char* call, ncclComm_t comm, ErrorText* error) {
  if (result == ncclSuccess) return kDone;
  if (result == ncclInProgress) return kInProgress;
  const auto& library = opened().library;
  std::string text = std::string(call) + ": " + library.get_error_string(result);
  if (library.get_last_error != nullptr) {
    const char* const last = library.get_last_error(comm);
    if (last != nullptr && *last != '\0') text += std::string(" (") + last + ")";
  }
  put(error, text);
  return result == ncclRemoteError ? kPeerFailed : kFailed;
}

Result load(ErrorText* error) {
  auto& all = opened();
  const MutexLock lock(all.mutex);
  if (all.loaded) return kDone;
  const auto found = nccl::load_library();
  std::string problem = found.problem;
  if (problem.empty()) problem = nccl::load_driver(all.driver);
  if (!problem.empty()) {
    put(error, problem);
    return kFailed;
  }
  all.library = found.library;
  all.loaded = true;
  return kDone;
}

void probe(Probe* out) {
  *out = {};
  ErrorText error{};
  const auto result = guarded(&error, [&] {
    const auto found = nccl::load_library();
    out->version = found.version;
    std::snprintf(out->path, sizeof(out->path), "%s", found.path.c_str());
    put(&error, found.problem);
    return kDone;
  });
  static_cast<void>(result);  // the text says it
  std::snprintf(out->problem, sizeof(out->problem), "%s", error.text);
}

Result open(int device, Communicator** out, ErrorText* error) {
  return guarded(error, [&] {
    if (const auto result = load(error); result != kDone) return result;
    const auto& driver = opened().driver;
    if (const auto result = check(driver.init(0), "cuInit", error); result != kDone) return result;
    auto fresh = std::make_unique<Communicator>();
    if (const auto result = check(driver.device_get(&fresh->device, device), "cuDeviceGet", error);
        result != kDone) {
      return result;
    }
    CUcontext context = nullptr;
    if (const auto result = check(driver.primary_retain(&context, fresh->device),
                                  "cuDevicePrimaryCtxRetain", error);
        result != kDone) {
      return result;
    }
    if (const auto result = check(driver.push_current(context), "cuCtxPushCurrent", error);
        result != kDone) {
      driver.primary_release(fresh->device);
      return result;
    }
    driver.exchange_capture_mode(&fresh->capture_mode);
    if (const auto result = check(driver.stream_create(&fresh->stream, CU_STREAM_NON_BLOCKING),
                                  "cuStreamCreate", error);
        result != kDone) {
      driver.exchange_capture_mode(&fresh->capture_mode);
      driver.pop_current(&context);
      driver.primary_release(fresh->device);
      return result;
    }
    *out = fresh.release();
    return kDone;
  });
}

Result make_id(Communicator* /*communicator*/, unsigned char* id, ErrorText* error) {
  static_assert(sizeof(ncclUniqueId) == kIdBytes);
  return guarded(error, [&] {
    ncclUniqueId made{};
    const auto result =
        check(opened().library.get_unique_id(&made), "ncclGetUniqueId", nullptr, error);
    std::memcpy(id, &made, sizeof(made));
    return result;
  });
}

Result connect(Communicator* communicator, int rank, int size, const unsigned char* id,
               ErrorText* error) {
  return guarded(error, [&] {
    ncclUniqueId from{};
    std::memcpy(&from, id, sizeof(from));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return check(
        opened().library.comm_init_rank_config(&communicator->comm, size, from, rank, &config),
        "ncclCommInitRankConfig", communicator->comm, error);
  });
}

Result state(Communicator* communicator, ErrorText* error) {
  return guarded(error, [&] {
    ncclResult_t now = ncclSuccess;
    const auto result = check(opened().library.comm_get_async_error(communicator->comm, &now),
                              "ncclCommGetAsyncError", communicator->comm, error);
    return result != kDone ? result : check(now, "NCCL", communicator->comm, error);
  });
}

ncclDataType_t type_of(std::int32_t element) {
  // In the order of collectives::Element.
  constexpr std::array kTypes{ncclUint8,   ncclInt8,     ncclNumTypes, ncclInt32,  ncclInt64,
                              ncclFloat16, ncclBfloat16, ncclFloat32,  ncclFloat64};
  return kTypes.at(static_cast<std::size_t>(element));
}

ncclRedOp_t reduction_of(std::int32_t reduce) {
  constexpr std::array kReductions{ncclSum, ncclAvg, ncclProd, ncclMin, ncclMax};
  return kReductions.at(static_cast<std::size_t>(reduce));
}

ncclResult_t issue(const nccl::Library& nccl, const Communicator& on, const Operation& one) {
  // The driver's and the runtime's streams are one type.
  auto* const stream = static_cast<cudaStream_t>(on.stream);
  const auto type = type_of(one.element);
  switch (one.kind) {
    case Kind::kSend:
      return nccl.send(one.source, one.count, type, one.peer, on.comm, stream);
    case Kind::kReceive:
      return nccl.receive(one.target, one.count, type, one.peer, on.comm, stream);
    case Kind::kBroadcast:
      return nccl.broadcast(one.source, one.target, one.count, type, one.peer, on.comm, stream);
    case Kind::kAllGather:
      return nccl.all_gather(one.source, one.target, one.count, type, on.comm, stream);
    case Kind::kAllReduce:
      return nccl.all_reduce(one.source, one.target, one.count, type, reduction_of(one.reduce),
                             on.comm, stream);
    case Kind::kReduceScatter:
      return nccl.reduce_scatter(one.source, one.target, one.count, type, reduction_of(one.reduce),
                                 on.comm, stream);
  }
  return ncclInvalidArgument;
}

Result launch(Communicator* communicator, const Operation* operations, std::size_t count,
              ErrorText* error) {
  return guarded(error, [&] {
    const auto& nccl = opened().library;
    auto result = check(nccl.group_start(), "ncclGroupStart", communicator->comm, error);
    if (result != kDone) return result;
    for (std::size_t i = 0; i < count; ++i) {
      const auto issued =
          check(issue(nccl, *communicator, operations[i]), "NCCL", communicator->comm, error);
      if (issued != kDone && issued != kInProgress && result == kDone) result = issued;
    }
    // Also after an error: the group that was started is this thread's.
    ErrorText later{};
    const auto ended = check(nccl.group_end(), "ncclGroupEnd", communicator->comm, &later);
    if (result != kDone) return result;
    if (ended != kDone && ended != kInProgress) *error = later;
    return ended;
  });
}

std::uint64_t stream(Communicator* communicator) {
  return reinterpret_cast<std::uint64_t>(communicator->stream);
}

Result finish(Communicator* communicator, ErrorText* error) {
  return guarded(error, [&] {
    const auto result = check(opened().library.comm_finalize(communicator->comm),
                              "ncclCommFinalize", communicator->comm, error);
    communicator->finished = result == kDone || result == kInProgress;
    return result;
  });
}

Result abort(Communicator* communicator, ErrorText* error) {
  return guarded(error, [&] {
    communicator->finished = false;
    auto* const comm = std::exchange(communicator->comm, nullptr);
    if (comm == nullptr) return kDone;
    return check(opened().library.comm_abort(comm), "ncclCommAbort", nullptr, error);
  });
}

void close(Communicator* communicator) {
  const std::unique_ptr<Communicator> last(communicator);
  const auto& driver = opened().driver;
  if (last->comm != nullptr) {
    if (last->finished) {
      opened().library.comm_destroy(last->comm);
    } else {
      opened().library.comm_abort(last->comm);
    }
  }
  driver.stream_destroy(last->stream);
  driver.exchange_capture_mode(&last->capture_mode);
  CUcontext mine = nullptr;
  driver.pop_current(&mine);
  driver.primary_release(last->device);
}

std::string headers() { return "NCCL " + version_text(NCCL_VERSION_CODE) + " headers"; }

}  // namespace

}  // namespace meshstage::nccl_module

// Of the type by which core/os/module_file.cpp calls it.
extern "C" __attribute__((visibility("default"))) const void* meshstage_nccl_module_table() {
  using namespace meshstage::nccl_module;
  static const std::string version = headers();
  static const Table table{kNcclModuleAbi, version.c_str(), probe,  open,   make_id, connect,
                           state,          launch,          stream, finish, abort,   close};
  return &table;
}
