// Copies: what is checked when one is issued, and when its bytes are read and written.
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "tests/support/fake_cuda/calls.hpp"
#include "tests/support/fake_cuda/state.hpp"

namespace meshstage::fake_cuda {

namespace {

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
    carry(memory.reach(run.target), memory.reach(run.source), run.bytes,
          source != nullptr && target == nullptr);
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

}  // namespace

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

namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

CUresult CUDAAPI memcpy_host_to_device(CUdeviceptr target, const void* source, size_t bytes) {
  return copy_and_wait("cuMemcpyHtoD", {reinterpret_cast<void*>(target), source, bytes});
}

CUresult CUDAAPI memcpy_device_to_host(void* target, CUdeviceptr source, size_t bytes) {
  return copy_and_wait("cuMemcpyDtoH", {target, reinterpret_cast<const void*>(source), bytes});
}

}  // namespace meshstage::fake_cuda
