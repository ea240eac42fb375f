// The module libmeshstage_cuda.so: a table over the driver. It links nothing of CUDA.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/device/cuda/driver_impl.hpp>
#include <meshstage/core/device/cuda/kernels.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::device_backend {

struct Stream {
  CUstream stream;
  int device;
};
struct Event {
  CUevent event;
  int device;
};

namespace {

using cuda::Driver;

struct OpenDevice {
  CUcontext context = nullptr;
  CUfunction gather = nullptr;  ///< Null where there are no kernels.
  CUfunction digest = nullptr;  ///< The same.
  unsigned gather_blocks = 1;
};

// What the process has opened. open() fills it with the mutex held. `driver` and `devices` are read
// without: the caller opens a device before it uses it.
struct Opened {
  Mutex mutex;
  bool loaded MESHSTAGE_GUARDED_BY(mutex) = false;
  Driver driver{};
  CUlibrary kernels MESHSTAGE_GUARDED_BY(mutex) = nullptr;
  std::vector<std::unique_ptr<OpenDevice>> devices;  // null: not opened yet
};
Opened& opened() {
  static Opened all;  // never destroyed before the last call: it holds no resources that end
  return all;
}

void put(Failure* failure, ErrorKind kind, const std::string& text) {
  failure->kind = static_cast<std::int32_t>(kind);
  std::snprintf(failure->text, sizeof(failure->text), "%s", text.c_str());
}

// Writes what a call came to; `call` says what was tried.
Result check(CUresult result, const std::string& call, Failure* failure) {
  if (result == CUDA_SUCCESS) return kDone;
  const auto kind =
      result == CUDA_ERROR_OUT_OF_MEMORY ? ErrorKind::kOutOfMemory : ErrorKind::kInvalidState;
  put(failure, kind, call + ": " + cuda::describe(opened().driver, result));
  return kFailed;
}

// The device's primary context is current, and a capture elsewhere does not forbid what follows,
// while this lives; then the thread is as it was.
class Scope {
 public:
  explicit Scope(int device) : driver_(opened().driver) {
    driver_.exchange_capture_mode(&mode_);
    result_ = driver_.push_current(opened().devices[static_cast<std::size_t>(device)]->context);
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() {
    if (result_ == CUDA_SUCCESS) {
      CUcontext mine = nullptr;
      driver_.pop_current(&mine);
    }
    driver_.exchange_capture_mode(&mode_);
  }
  [[nodiscard]] CUresult result() const noexcept { return result_; }

 private:
  const Driver& driver_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
  CUresult result_;
};

// Runs `f` with the driver in a device's context.
template <class F>
Result with_device(int device, const char* call, Failure* failure, F&& f) {
  const Scope scope(device);
  if (scope.result() != CUDA_SUCCESS) return check(scope.result(), "cuCtxPushCurrent", failure);
  return check(f(opened().driver), call, failure);
}

CUdeviceptr address_of(const void* memory) { return reinterpret_cast<CUdeviceptr>(memory); }
CUstream stream_of(std::uint64_t foreign) {
  return reinterpret_cast<CUstream>(foreign == 0 ? 1 : foreign);  // 0 is the legacy one, too
}

void probe(Probe* out) {
  *out = {};
  const auto state = cuda::open_driver();
  out->problem = static_cast<std::int32_t>(state.problem);
  out->devices = state.devices;
  if (state.version != 0) {
    std::snprintf(out->driver, sizeof(out->driver), "CUDA %d.%d", state.version / 1000,
                  state.version % 1000 / 10);
  }
  std::snprintf(out->detail, sizeof(out->detail), "%s", state.detail.c_str());
  if (cuda::kernels_fatbin() == nullptr)
    std::snprintf(out->kernels, sizeof(out->kernels), "built without nvcc");
}

Result load(Opened& all, Failure* failure) MESHSTAGE_REQUIRES(all.mutex) {
  if (all.loaded) return kDone;
  const auto state = cuda::open_driver();
  if (state.problem != DeviceProblem::kNone) {
    put(failure, ErrorKind::kInvalidState, state.detail);
    return kFailed;
  }
  all.driver = state.driver;
  all.devices.resize(static_cast<std::size_t>(state.devices));
  all.loaded = true;
  return kDone;
}

Result find_device(Opened& all, int device, CUdevice* found, Failure* failure)
    MESHSTAGE_REQUIRES(all.mutex) {
  if (const auto result = load(all, failure); result != kDone) return result;
  if (device < 0 || static_cast<std::size_t>(device) >= all.devices.size()) {
    put(failure, ErrorKind::kInvalidArgument,
        "there is no device cuda:" + std::to_string(device) + ", the driver sees " +
            std::to_string(all.devices.size()));
    return kFailed;
  }
  return check(all.driver.device_get(found, device), "cuDeviceGet", failure);
}

int attribute(const Driver& driver, CUdevice device, CUdevice_attribute what) {
  int value = 0;
  return driver.device_get_attribute(&value, what, device) == CUDA_SUCCESS ? value : 0;
}

Result describe(int device, Description* out, Failure* failure) {
  auto& all = opened();
  const MutexLock lock(all.mutex);
  *out = {};
  CUdevice found = 0;
  if (const auto result = find_device(all, device, &found, failure); result != kDone) return result;
  const auto& driver = all.driver;
  if (const auto result =
          check(driver.device_get_name(out->name, static_cast<int>(sizeof(out->name)), found),
                "cuDeviceGetName", failure);
      result != kDone) {
    return result;
  }
  size_t bytes = 0;
  if (const auto result =
          check(driver.device_total_mem(&bytes, found), "cuDeviceTotalMem", failure);
      result != kDone) {
    return result;
  }
  out->memory_bytes = bytes;
  out->major = attribute(driver, found, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  out->minor = attribute(driver, found, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  return kDone;
}

// `arguments`: the one struct that the kernel takes.
CUresult launch(const Driver& driver, CUfunction kernel, unsigned blocks, unsigned threads,
                CUstream stream, void* arguments) {
  std::array<void*, 1> parameters{arguments};
  CUlaunchConfig config{};
  config.gridDimX = std::max(blocks, 1U);
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = threads;
  config.blockDimY = config.blockDimZ = 1;
  config.hStream = stream;
  return driver.launch_kernel_ex(&config, kernel, parameters.data(), nullptr);
}

CUresult launch_gather(const Driver& driver, const OpenDevice& device, CUstream stream,
                       cuda::GatherArguments arguments) {
  return launch(driver, device.gather, std::min(arguments.count, device.gather_blocks),
                cuda::kGatherThreads, stream, &arguments);
}

CUresult launch_digest(const Driver& driver, const OpenDevice& device, CUstream stream,
                       cuda::DigestArguments arguments) {
  return launch(driver, device.digest, arguments.count, cuda::kDigestThreads, stream, &arguments);
}

// A kernel's first launch may wait for the whole device: it happens here, with nothing to do.
CUresult launch_first(const Driver& driver, const OpenDevice& device) {
  CUstream stream = nullptr;
  if (const auto result = driver.stream_create(&stream, CU_STREAM_NON_BLOCKING);
      result != CUDA_SUCCESS) {
    return result;
  }
  auto launched = launch_gather(driver, device, stream, {});
  if (launched == CUDA_SUCCESS) launched = launch_digest(driver, device, stream, {});
  const auto closed = driver.stream_destroy(stream);
  return launched != CUDA_SUCCESS ? launched : closed;
}

CUresult find_kernel(const Driver& driver, CUlibrary library, const char* name, CUfunction* found) {
  CUkernel kernel = nullptr;
  const auto result = driver.library_get_kernel(&kernel, library, name);
  return result != CUDA_SUCCESS ? result : driver.kernel_get_function(found, kernel);
}

// Kernels that cannot be had are done without: an architecture that the fatbin does not know, say.
void load_kernels(Opened& all, OpenDevice& device, CUdevice number) MESHSTAGE_REQUIRES(all.mutex) {
  if (cuda::kernels_fatbin() == nullptr) return;
  if (all.kernels == nullptr &&
      all.driver.library_load_data(&all.kernels, cuda::kernels_fatbin(), nullptr, nullptr, 0,
                                   nullptr, nullptr, 0) != CUDA_SUCCESS) {
    all.kernels = nullptr;
    return;
  }
  const int processors = attribute(all.driver, number, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  device.gather_blocks = static_cast<unsigned>(std::max(processors, 1));
  const auto& driver = all.driver;
  if (find_kernel(driver, all.kernels, cuda::kGatherName, &device.gather) != CUDA_SUCCESS ||
      find_kernel(driver, all.kernels, cuda::kDigestName, &device.digest) != CUDA_SUCCESS ||
      launch_first(driver, device) != CUDA_SUCCESS) {
    device.gather = device.digest = nullptr;
  }
}

Result open(int device, Failure* failure) {
  auto& all = opened();
  const MutexLock lock(all.mutex);
  CUdevice number = 0;
  if (const auto result = find_device(all, device, &number, failure); result != kDone)
    return result;
  auto& slot = all.devices[static_cast<std::size_t>(device)];
  if (slot) return kDone;
  auto fresh = std::make_unique<OpenDevice>();
  if (const auto result = check(all.driver.primary_retain(&fresh->context, number),
                                "cuDevicePrimaryCtxRetain", failure);
      result != kDone) {
    return result;
  }
  slot = std::move(fresh);
  const Scope scope(device);
  if (scope.result() != CUDA_SUCCESS) {
    slot.reset();  // the context stays retained: a later open() retains it once more
    return check(scope.result(), "cuCtxPushCurrent", failure);
  }
  load_kernels(all, *slot, number);
  return kDone;
}

Result locate(int device, const void* address, Location* out, Failure* failure) {
  CUmemorytype kind{};
  int ordinal = -1;
  unsigned managed = 0;
  std::array<CUpointer_attribute, 3> wanted{CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                                            CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                            CU_POINTER_ATTRIBUTE_IS_MANAGED};
  std::array<void*, 3> values{&kind, &ordinal, &managed};
  // What the driver does not know is no error: it leaves zeros.
  const auto result = with_device(device, "cuPointerGetAttributes", failure, [&](const Driver& d) {
    return d.pointer_get_attributes(static_cast<unsigned>(wanted.size()), wanted.data(),
                                    values.data(), address_of(address));
  });
  if (result != kDone) return result;
  out->device = ordinal;
  out->pointee = managed != 0                   ? Pointee::kManaged
                 : kind == CU_MEMORYTYPE_DEVICE ? Pointee::kDevice
                 : kind == CU_MEMORYTYPE_HOST   ? Pointee::kPinned
                                                : Pointee::kUnknown;
  return kDone;
}

Result allocate(int device, std::uint64_t bytes, void** memory, Failure* failure) {
  CUdeviceptr found = 0;
  const auto result = with_device(device, "cuMemAlloc", failure,
                                  [&](const Driver& d) { return d.mem_alloc(&found, bytes); });
  *memory = reinterpret_cast<void*>(found);
  return result;
}

void release(int device, void* memory) {
  Failure ignored;  // nothing is left to do for memory that the driver no longer knows
  with_device(device, "cuMemFree", &ignored,
              [&](const Driver& d) { return d.mem_free(address_of(memory)); });
}

Result pin(int device, void* begin, std::uint64_t bytes, std::uint64_t* address, Failure* failure) {
  auto result = with_device(device, "cuMemHostRegister", failure, [&](const Driver& d) {
    return d.host_register(begin, bytes,
                           CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
  });
  if (result != kDone) return result;
  CUdeviceptr seen = 0;
  result = with_device(device, "cuMemHostGetDevicePointer", failure,
                       [&](const Driver& d) { return d.host_get_device_pointer(&seen, begin, 0); });
  if (result != kDone) {
    Failure ignored;  // the first failure is what is reported
    with_device(device, "cuMemHostUnregister", &ignored,
                [&](const Driver& d) { return d.host_unregister(begin); });
    return result;
  }
  *address = seen;
  return kDone;
}

Result unpin(int device, void* begin, Failure* failure) {
  return with_device(device, "cuMemHostUnregister", failure,
                     [&](const Driver& d) { return d.host_unregister(begin); });
}

Result open_stream(int device, Stream** stream, Failure* failure) {
  auto fresh = std::make_unique<Stream>(Stream{nullptr, device});
  const auto result = with_device(device, "cuStreamCreate", failure, [&](const Driver& d) {
    return d.stream_create(&fresh->stream, CU_STREAM_NON_BLOCKING);
  });
  if (result == kDone) *stream = fresh.release();
  return result;
}

void close_stream(Stream* stream) {
  Failure ignored;  // a stream of a broken context is gone already
  with_device(stream->device, "cuStreamDestroy", &ignored,
              [&](const Driver& d) { return d.stream_destroy(stream->stream); });
  delete stream;
}

Result open_event(int device, Event** event, Failure* failure) {
  auto fresh = std::make_unique<Event>(Event{nullptr, device});
  const auto result = with_device(device, "cuEventCreate", failure, [&](const Driver& d) {
    return d.event_create(&fresh->event, CU_EVENT_DISABLE_TIMING);
  });
  if (result == kDone) *event = fresh.release();
  return result;
}

void close_event(Event* event) {
  Failure ignored;  // as close_stream()
  with_device(event->device, "cuEventDestroy", &ignored,
              [&](const Driver& d) { return d.event_destroy(event->event); });
  delete event;
}

Result is_capturing(int device, std::uint64_t foreign, bool* capturing, Failure* failure) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  bool implicit = false;
  const auto result = with_device(device, "cuStreamIsCapturing", failure, [&](const Driver& d) {
    const auto said = d.stream_is_capturing(stream_of(foreign), &status);
    // The legacy stream while a stream that it orders is being captured.
    implicit = said == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    return implicit ? CUDA_SUCCESS : said;
  });
  *capturing = implicit || status != CU_STREAM_CAPTURE_STATUS_NONE;
  return result;
}

Result record_foreign(Event* event, std::uint64_t foreign, Failure* failure) {
  return with_device(event->device, "cuEventRecord", failure, [&](const Driver& d) {
    return d.event_record(event->event, stream_of(foreign));
  });
}

Result wait_foreign(int device, std::uint64_t foreign, Event* event, Failure* failure) {
  return with_device(device, "cuStreamWaitEvent", failure, [&](const Driver& d) {
    return d.stream_wait_event(stream_of(foreign), event->event, CU_EVENT_WAIT_DEFAULT);
  });
}

Result record(Event* event, Stream* stream, Failure* failure) {
  return with_device(stream->device, "cuEventRecord", failure,
                     [&](const Driver& d) { return d.event_record(event->event, stream->stream); });
}

Result wait(Stream* stream, Event* event, Failure* failure) {
  return with_device(stream->device, "cuStreamWaitEvent", failure, [&](const Driver& d) {
    return d.stream_wait_event(stream->stream, event->event, CU_EVENT_WAIT_DEFAULT);
  });
}

Result query(Event* event, Failure* failure) {
  bool ready = true;
  const auto result = with_device(event->device, "cuEventQuery", failure, [&](const Driver& d) {
    const auto said = d.event_query(event->event);
    ready = said != CUDA_ERROR_NOT_READY;
    return ready ? said : CUDA_SUCCESS;
  });
  return result == kDone && !ready ? kNotReady : result;
}

// One call for all of them where the driver has it.
CUresult copy_batch(const Driver& d, CUstream stream, const Copy* copies, std::size_t count) {
  std::vector<CUdeviceptr> targets(count), sources(count);
  std::vector<size_t> sizes(count);
  for (std::size_t i = 0; i < count; ++i) {
    targets[i] = address_of(copies[i].target);
    sources[i] = address_of(copies[i].source);
    sizes[i] = copies[i].bytes;
  }
  CUmemcpyAttributes attributes{};
  attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  attributes.flags = CU_MEMCPY_FLAG_DEFAULT;
  size_t first = 0;
  if (d.memcpy_batch_13 != nullptr) {
    return d.memcpy_batch_13(targets.data(), sources.data(), sizes.data(), count, &attributes,
                             &first, 1, stream);
  }
  size_t failed = 0;
  return d.memcpy_batch_12(targets.data(), sources.data(), sizes.data(), count, &attributes, &first,
                           1, &failed, stream);
}

Result copy(Stream* stream, const Copy* copies, std::size_t count, bool pageable,
            Failure* failure) {
  const auto& driver = opened().driver;
  const bool batch = driver.memcpy_batch_13 != nullptr || driver.memcpy_batch_12 != nullptr;
  if (batch && !pageable && count > 1) {
    return with_device(stream->device, "cuMemcpyBatchAsync", failure, [&](const Driver& d) {
      return copy_batch(d, stream->stream, copies, count);
    });
  }
  return with_device(stream->device, "cuMemcpyAsync", failure, [&](const Driver& d) {
    for (std::size_t i = 0; i < count; ++i) {
      const auto result = d.memcpy_async(address_of(copies[i].target), address_of(copies[i].source),
                                         copies[i].bytes, stream->stream);
      if (result != CUDA_SUCCESS) return result;
    }
    return CUDA_SUCCESS;
  });
}

bool can_gather(int device) {
  return opened().devices[static_cast<std::size_t>(device)]->gather != nullptr;
}

Result gather(Stream* stream, std::uint64_t items, std::uint32_t count, Failure* failure) {
  const auto& device = *opened().devices[static_cast<std::size_t>(stream->device)];
  return with_device(stream->device, "cuLaunchKernelEx", failure, [&](const Driver& d) {
    return launch_gather(d, device, stream->stream, {items, count, 0});
  });
}

bool can_digest(int device) {
  return opened().devices[static_cast<std::size_t>(device)]->digest != nullptr;
}

Result digest(Stream* stream, std::uint64_t blocks, std::uint64_t runs, std::uint64_t results,
              std::uint32_t count, Failure* failure) {
  const auto& device = *opened().devices[static_cast<std::size_t>(stream->device)];
  return with_device(stream->device, "cuLaunchKernelEx", failure, [&](const Driver& d) {
    return launch_digest(d, device, stream->stream, {blocks, runs, results, count, 0});
  });
}

constexpr Table kTable = {kBackendAbi,  "CUDA " MESHSTAGE_CUDA_HEADERS " headers",
                          probe,        describe,
                          open,         locate,
                          allocate,     release,
                          pin,          unpin,
                          open_stream,  close_stream,
                          open_event,   close_event,
                          is_capturing, record_foreign,
                          wait_foreign, record,
                          wait,         query,
                          copy,         can_gather,
                          gather,       can_digest,
                          digest};

}  // namespace

}  // namespace meshstage::device_backend

// Of the type by which core/os/module_file.cpp calls it.
extern "C" __attribute__((visibility("default"))) const void* meshstage_device_backend_table() {
  return &meshstage::device_backend::kTable;
}
