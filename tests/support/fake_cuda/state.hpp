#pragma once
#include <cuda.h>

#include <array>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/fake_cuda/memory.hpp"
#include "tests/support/fake_cuda/order.hpp"

/// The state of the fake driver, and what its calls have in common. One lock for everything.
namespace meshstage::fake_cuda {

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
  std::uint64_t damage_at = 0;  // of the runs that leave a device
  bool damage_drops = false;
  CUresult init_result = CUDA_SUCCESS;
  int version = 13000;
  int devices = 2;
};

Fake& fake();
/// Notes that a rule of the driver was broken.
void violate(const std::string& text);

/// Copies a run, in the host's addresses. One that leaves a device may be damaged on the way
/// (Control::damage_copy).
void carry(std::byte* to, const std::byte* from, std::size_t bytes, bool leaves_device);

inline thread_local std::vector<CUcontext> current;
inline thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

CUcontext context_of(int device);
/// -1: none.
int current_device();

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

/// The stream of that handle, in the current device. With the lock.
CUresult find_stream(CUstream handle, Stream** found);
/// Issues, unless the stream is being captured: then the operation becomes part of the graph, which
/// the fake throws away. With the lock.
PointPtr issue(Stream& stream, Operation operation);
void wait_for(std::unique_lock<std::mutex>& lock, const PointPtr& point);

}  // namespace meshstage::fake_cuda
