// The fake libcuda.so.1: entry points with the signatures of the toolkit's header, found by
// cuGetProcAddress_v2 as in the real one. One lock for everything.
#include <cuda.h>

#include <cudaTypedefs.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/fake_cuda/control.hpp"
#include "tests/support/fake_cuda/kernels.hpp"
#include "tests/support/fake_cuda/memory.hpp"
#include "tests/support/fake_cuda/order.hpp"

namespace meshstage::fake_cuda {
namespace {

struct Event {
  int device = 0;
  PointPtr point;  ///< Null: never recorded, which waits for nothing.
};

struct Capture {
  CUstreamCaptureMode mode{};
  std::thread::id thread;
  bool broken = false;
};

constexpr int kMostDevices = 2;

struct Fake {
  std::mutex mutex;
  std::condition_variable changed;
  Memory memory;
  Order order;
  std::set<Event*> events;
  std::map<const Stream*, Capture> captures;
  std::map<std::pair<std::thread::id, int>, Stream*> per_thread;
  bool held = false;
  bool initialized = false;
  std::array<int, kMostDevices> contexts{};  // how often each is retained
  std::string violations;
  std::map<std::string, std::uint64_t, std::less<>> calls;
  std::uint64_t all_calls = 0;
  std::uint64_t fail_at = 0;
  std::string fail_name;
  CUresult fail_with = CUDA_SUCCESS;
  CUresult init_result = CUDA_SUCCESS;
  int version = 13000;
  int devices = 2;
};

Fake& fake() {
  static Fake* const one = new Fake;  // used until the process ends
  return *one;
}

void violate(const std::string& text) { fake().violations += text + "\n"; }

thread_local std::vector<CUcontext> current;
thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

CUcontext context_of(int device) {
  return reinterpret_cast<CUcontext>(&fake().contexts[static_cast<std::size_t>(device)]);
}
int current_device() {
  if (current.empty()) return -1;
  for (int i = 0; i < kMostDevices; ++i) {
    if (current.back() == context_of(i)) return i;
  }
  return -1;
}

// kSafe: a call that a capture elsewhere forbids. kUndoes: a call that takes effect even if it
// fails, which then reports the failure of something that was issued earlier.
enum Needs : unsigned { kNothing = 0, kContext = 1, kSafe = 2, kUndoes = 4 };

// What every call begins with.
template <class F>
CUresult enter(const char* name, unsigned needs, F&& f) {
  auto& all = fake();
  std::unique_lock lock(all.mutex);
  ++all.calls[name];
  ++all.all_calls;
  if (all.fail_at != 0 && (all.fail_name.empty() || all.fail_name == name) && --all.fail_at == 0) {
    if ((needs & kUndoes) != 0) f(lock);
    return all.fail_with;
  }
  if (!all.initialized) return CUDA_ERROR_NOT_INITIALIZED;
  if ((needs & kContext) != 0 && current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
  if ((needs & kSafe) != 0) {
    for (auto& [stream, capture] : all.captures) {
      const bool forbids = (capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                            capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED) ||
                           (capture.mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL &&
                            capture.thread == std::this_thread::get_id() &&
                            capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED);
      if (!forbids) continue;
      capture.broken = true;
      violate(std::string(name) + " while a stream is being captured");
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
  }
  return f(lock);
}

CUresult find_stream(CUstream handle, Stream** found) {
  auto& all = fake();
  const auto value = reinterpret_cast<std::uintptr_t>(handle);
  const int device = current_device();
  if (value <= 1) {
    *found = all.order.legacy(device);
    for (auto& [stream, capture] : all.captures) {
      if (!stream->blocking || stream->device != device) continue;
      capture.broken = true;
      return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    return CUDA_SUCCESS;
  }
  if (value == 2) {
    auto& mine = all.per_thread[{std::this_thread::get_id(), device}];
    if (mine == nullptr) mine = all.order.open(device, true);
    *found = mine;
    return CUDA_SUCCESS;
  }
  *found = reinterpret_cast<Stream*>(handle);
  if (!all.order.is_open(*found) || (*found)->device != device) return CUDA_ERROR_INVALID_HANDLE;
  return CUDA_SUCCESS;
}

// Issues, unless the stream is being captured: then the operation becomes part of the graph, which
// the fake throws away.
PointPtr issue(Stream& stream, Operation operation) {
  auto& all = fake();
  if (all.captures.contains(&stream)) return operation.point;
  return all.order.issue(stream, std::move(operation));
}

void wait_for(std::unique_lock<std::mutex>& lock, const PointPtr& point) {
  auto& all = fake();
  while (!point->done) {
    if (all.held) {
      all.changed.wait(lock);
    } else {
      all.order.step_towards(point);
    }
  }
}

// --- what there is ---

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

// --- copies ---

struct Run {
  void* target;
  const void* source;
  std::size_t bytes;
};

// What is wrong with a copy at the moment of the call.
CUresult check_run(const Run& run) {
  const auto& memory = fake().memory;
  using Kind = Memory::Kind;
  for (const void* end : {static_cast<const void*>(run.target), run.source}) {
    const auto kind = memory.kind(end, run.bytes);
    if (kind == Kind::kMixed) return CUDA_ERROR_INVALID_VALUE;
    if (kind == Kind::kDevice && !memory.allocation(end)->live) return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

// A copy that happens: what has changed since the call breaks rules.
std::function<void()> happening(Run run) {
  const bool pinned_target = fake().memory.kind(run.target, run.bytes) == Memory::Kind::kPinned;
  const bool pinned_source = fake().memory.kind(run.source, run.bytes) == Memory::Kind::kPinned;
  return [=] {
    const auto& memory = fake().memory;
    const auto* const target = memory.allocation(run.target);
    if (target != nullptr && !target->live) return violate("a copy into memory that was freed");
    const auto* const source = memory.allocation(run.source);
    if (source != nullptr && !source->live) violate("a copy from memory that was freed");
    using Kind = Memory::Kind;
    if (pinned_target && memory.kind(run.target, run.bytes) != Kind::kPinned)
      return violate("a copy into memory that was unregistered before it happened");
    if (pinned_source && memory.kind(run.source, run.bytes) != Kind::kPinned)
      return violate("a copy from memory that was unregistered before it happened");
    std::memcpy(memory.reach(run.target), memory.reach(run.source), run.bytes);
  };
}

// The memory at a source as it is now: a copy that does not read it in stream order.
std::function<void()> read_now(Run run) {
  const auto& memory = fake().memory;
  const auto* const from = memory.reach(run.source);
  std::vector<std::byte> bytes(from, from + run.bytes);
  return [run, bytes = std::move(bytes)] {
    std::memcpy(fake().memory.reach(run.target), bytes.data(), run.bytes);
  };
}

CUresult copy_one(std::unique_lock<std::mutex>& lock, Stream& stream, const Run& run) {
  using Kind = Memory::Kind;
  auto& all = fake();
  if (run.bytes == 0) return CUDA_SUCCESS;
  if (const auto result = check_run(run); result != CUDA_SUCCESS) return result;
  const bool to_pageable = all.memory.kind(run.target, run.bytes) == Kind::kPageable;
  const bool from_pageable = all.memory.kind(run.source, run.bytes) == Kind::kPageable;
  Operation copy;
  copy.steps.push_back(from_pageable && !to_pageable ? read_now(run) : happening(run));
  const auto point = issue(stream, std::move(copy));
  if (to_pageable) wait_for(lock, point);
  return CUDA_SUCCESS;
}

CUresult CUDAAPI memcpy_async(CUdeviceptr target, CUdeviceptr source, size_t bytes,
                              CUstream handle) {
  return enter("cuMemcpyAsync", kContext, [&](auto& lock) {
    Stream* stream = nullptr;
    if (const auto result = find_stream(handle, &stream); result != CUDA_SUCCESS) return result;
    return copy_one(
        lock, *stream,
        {reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), bytes});
  });
}

CUresult batch(CUdeviceptr* targets, CUdeviceptr* sources, size_t* sizes, size_t count,
               CUmemcpyAttributes* attributes, const size_t* indices, size_t attribute_count,
               CUstream handle) {
  auto& all = fake();
  const auto value = reinterpret_cast<std::uintptr_t>(handle);
  if (value <= 1) return CUDA_ERROR_INVALID_VALUE;
  Stream* stream = nullptr;
  if (const auto result = find_stream(handle, &stream); result != CUDA_SUCCESS) return result;
  if (count == 0 || attribute_count != 1 || indices[0] != 0) return CUDA_ERROR_INVALID_VALUE;
  const auto order = attributes[0].srcAccessOrder;
  if (order < CU_MEMCPY_SRC_ACCESS_ORDER_STREAM || order > CU_MEMCPY_SRC_ACCESS_ORDER_ANY)
    return CUDA_ERROR_INVALID_VALUE;
  Operation copies;
  for (size_t i = 0; i < count; ++i) {
    const Run run{reinterpret_cast<void*>(targets[i]), reinterpret_cast<const void*>(sources[i]),
                  sizes[i]};
    if (run.bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (const auto result = check_run(run); result != CUDA_SUCCESS) return result;
    for (const void* end : {static_cast<const void*>(run.target), run.source}) {
      if (all.memory.kind(end, run.bytes) == Memory::Kind::kPageable)
        return CUDA_ERROR_INVALID_VALUE;
    }
    copies.steps.push_back(order == CU_MEMCPY_SRC_ACCESS_ORDER_STREAM ? happening(run)
                                                                      : read_now(run));
  }
  issue(*stream, std::move(copies));
  return CUDA_SUCCESS;
}

CUresult CUDAAPI memcpy_batch_13(CUdeviceptr* targets, CUdeviceptr* sources, size_t* sizes,
                                 size_t count, CUmemcpyAttributes* attributes, size_t* indices,
                                 size_t attribute_count, CUstream stream) {
  return enter("cuMemcpyBatchAsync", kContext, [&](auto&) {
    return batch(targets, sources, sizes, count, attributes, indices, attribute_count, stream);
  });
}
CUresult CUDAAPI memcpy_batch_12(CUdeviceptr* targets, CUdeviceptr* sources, size_t* sizes,
                                 size_t count, CUmemcpyAttributes* attributes, size_t* indices,
                                 size_t attribute_count, size_t* failed, CUstream stream) {
  return enter("cuMemcpyBatchAsync", kContext, [&](auto&) {
    *failed = SIZE_MAX;
    return batch(targets, sources, sizes, count, attributes, indices, attribute_count, stream);
  });
}
CUresult CUDAAPI memset_d8_async(CUdeviceptr target, unsigned char value, size_t bytes,
                                 CUstream handle) {
  return enter("cuMemsetD8Async", kContext, [&](auto&) {
    Stream* stream = nullptr;
    if (const auto result = find_stream(handle, &stream); result != CUDA_SUCCESS) return result;
    const auto* const to = fake().memory.allocation(reinterpret_cast<const void*>(target));
    if (to == nullptr || !to->live) return CUDA_ERROR_INVALID_VALUE;
    Operation set;
    set.steps.emplace_back([=] {
      std::memset(fake().memory.reach(reinterpret_cast<const void*>(target)), value, bytes);
    });
    issue(*stream, std::move(set));
    return CUDA_SUCCESS;
  });
}
// The two that wait: on the legacy stream.
CUresult copy_and_wait(const char* name, const Run& run) {
  return enter(name, kContext | kSafe, [&](auto& lock) {
    Stream* stream = nullptr;
    if (const auto result = find_stream(nullptr, &stream); result != CUDA_SUCCESS) return result;
    if (const auto result = copy_one(lock, *stream, run); result != CUDA_SUCCESS) return result;
    wait_for(lock, issue(*stream, {}));
    return CUDA_SUCCESS;
  });
}
CUresult CUDAAPI memcpy_host_to_device(CUdeviceptr target, const void* source, size_t bytes) {
  return copy_and_wait("cuMemcpyHtoD", {reinterpret_cast<void*>(target), source, bytes});
}
CUresult CUDAAPI memcpy_device_to_host(void* target, CUdeviceptr source, size_t bytes) {
  return copy_and_wait("cuMemcpyDtoH", {target, reinterpret_cast<const void*>(source), bytes});
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

MESHSTAGE_FAKE_EXPORT const meshstage::fake_cuda::Control* meshstage_fake_cuda_control() {
  return &meshstage::fake_cuda::kControl;
}
