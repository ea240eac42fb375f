#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/memory/pinning.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::tools {

/// The exit code of a program that was asked for a device which cannot be used.
inline constexpr int kDeviceUnusable = 3;

/// The text says why the device cannot be used, and what helps.
struct DeviceUnusable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The device that `--device TEXT` names: "cpu", "cuda:1", or "cuda", which deals the devices out
/// to the ranks of a host in turn. Throws InvalidArgument for another text, and DeviceUnusable.
[[nodiscard]] Device choose_device(const std::string& text, int local_rank = 0);

/// How `--collectives` averages gradients: in host memory, or over NCCL in a device's memory.
enum class Collectives : std::uint8_t { kHost, kNccl };
/// Of "host" or "nccl". Throws InvalidArgument for another text and for nccl without a device, and
/// DeviceUnusable where NCCL cannot be used.
[[nodiscard]] Collectives choose_collectives(const std::string& text, Device device);

/// Tensors of host memory and, for each of their storages, a twin in a device's memory. The twins
/// are the state; the host's tensors are what a program computes on between get() and put().
/// Copies are ordered by stream(), a stream that DeviceState alone uses, behind and before the work
/// of trainer_stream(): a step that is staged with that stream is staged as put() left it.
/// Threads: one.
class DeviceState {
 public:
  /// Opens the device. Throws what DeviceRuntime throws.
  explicit DeviceState(Device device);
  DeviceState(const DeviceState&) = delete;
  DeviceState& operator=(const DeviceState&) = delete;
  ~DeviceState();

  /// The tensor on the device that stands for `host`: equal dtype, shape and strides, on the twin
  /// of its storage, so that views and ties stay. Its bytes are unspecified before the next put().
  [[nodiscard]] Tensor twin(const Tensor& host);
  /// A tree of twins; containers are new. Throws InvalidArgument for a Node.
  [[nodiscard]] Value twin(const Value& host);
  /// The tensor that `on_device` is the twin of.
  [[nodiscard]] Tensor host(const Tensor& on_device) const;

  /// Copies all storages to their twins, behind what trainer_stream() has to do so far. The host's
  /// tensors may change when put() returns; the device may still copy then.
  void put();
  /// Copies all twins to their storages and waits for it.
  void get();
  /// Waits until what put() began is done.
  void wait();

  [[nodiscard]] TrainerStream trainer_stream() const { return {device_, kLegacyStream}; }
  [[nodiscard]] Device device() const { return device_; }
  /// Of all twins.
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  struct Twin {
    Storage host, device;
    std::size_t offset = 0;  // in the bounce memory
  };
  struct Bounce;
  void prepare();
  void copy(CopyDirection direction);
  Storage& twin_of(const Storage& host);

  Device device_;
  DeviceRuntime& runtime_;
  DeviceStream stream_;
  std::vector<Twin> twins_;
  std::map<const void*, std::size_t> by_host_, by_device_;  // identity to index
  std::uint64_t bytes_ = 0;
  std::shared_ptr<Bounce> bounce_;  // page-locked, as large as all storages
  DeviceEvent copied_;              // behind the latest copies
};

/// Page-locked host memory.
class PinnedBlock {
 public:
  PinnedBlock(Device device, std::uint64_t bytes);
  PinnedBlock(const PinnedBlock&) = delete;
  PinnedBlock& operator=(const PinnedBlock&) = delete;
  ~PinnedBlock();
  [[nodiscard]] std::byte* data() const { return pages_.data(); }
  [[nodiscard]] std::size_t size() const { return pages_.size(); }

 private:
  std::span<std::byte> pages_;
  std::unique_ptr<PinnedPages> locked_;
};

}  // namespace meshstage::tools
