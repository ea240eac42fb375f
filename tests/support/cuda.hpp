#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/tensor/tensor.hpp>

#include "tests/support/fake_cuda/control.hpp"

namespace meshstage::test {

/// CUDA devices for a test, and a trainer that uses them through the driver as a trainer would: on
/// the fake libcuda.so.1, or on the real one where the variable MESHSTAGE_TEST_CUDA is "real". One
/// at a time; device 0's context is the test thread's while it lives, and any thread may call.
class Cuda {
 public:
  /// Opens the fake before anything asks for libcuda.so.1. `seed` orders what the fake may order.
  explicit Cuda(std::uint64_t seed = 0);
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  /// Checks that no rule was broken (unless forgiven) and lets what was held happen.
  ~Cuda();

  [[nodiscard]] static bool real();
  /// Only where !real().
  [[nodiscard]] static const fake_cuda::Control& fake();
  /// The rules that were broken so far, which are no failure of the test then.
  [[nodiscard]] std::string forgive();

  static constexpr Device kDevice{DeviceType::kCuda, 0};
  [[nodiscard]] DeviceRuntime& runtime() const { return DeviceRuntime::of(DeviceType::kCuda); }
  /// Waits until the runtime keeps nothing for a device. It lets go of what is done when it is
  /// asked.
  void wait_until_nothing_is_kept() const {
    while (runtime().kept() != 0) std::this_thread::yield();
  }

  /// A U8 tensor in memory of a device that is freed (at once, as a caching allocator does) with
  /// its last handle; `offset` bytes into an allocation.
  [[nodiscard]] Tensor tensor(std::int64_t bytes, unsigned char value = 0, std::size_t offset = 0,
                              Device device = kDevice);
  /// Bytes of the tensor's storage, copied to the device now.
  void write(const Tensor& tensor, std::span<const std::byte> bytes);
  /// The storage's bytes, when everything on the device is done.
  [[nodiscard]] std::vector<std::byte> read(const Tensor& tensor);

  /// A tensor of the CPU with the same storage, bytes as read(), and strides.
  [[nodiscard]] Tensor to_host(const Tensor& tensor);

  /// A stream of the trainer's that the legacy stream does not order.
  [[nodiscard]] StreamHandle open_stream();
  void close_stream(StreamHandle stream);
  /// Fills the tensor's storage in stream order.
  void set(const Tensor& tensor, unsigned char value, StreamHandle stream);
  void synchronize(StreamHandle stream);
  void begin_capture(StreamHandle stream);
  /// Whether the capture was left alone.
  [[nodiscard]] bool end_capture(StreamHandle stream);

  struct Driver;

 private:
  std::unique_ptr<Driver> driver_;
  bool forgiven_ = false;
};

}  // namespace meshstage::test
