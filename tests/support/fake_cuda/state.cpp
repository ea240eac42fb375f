#include "tests/support/fake_cuda/state.hpp"

#include <chrono>
#include <cstring>

namespace meshstage::fake_cuda {

Fake& fake() {
  static Fake* const one = new Fake;  // used until the process ends
  return *one;
}

void violate(const std::string& text) { fake().violations += text + "\n"; }

void carry(std::byte* to, const std::byte* from, std::size_t bytes, bool leaves_device) {
  auto& all = fake();
  const bool damaged = leaves_device && all.damage_at != 0 && --all.damage_at == 0;
  if (damaged && all.damage_drops) return;
  std::memcpy(to, from, bytes);
  if (damaged && bytes > 0) to[bytes / 2] ^= std::byte{1};
}

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
      if (all.order.at_a_gate()) all.changed.wait_for(lock, std::chrono::microseconds(200));
    }
  }
}

}  // namespace meshstage::fake_cuda
