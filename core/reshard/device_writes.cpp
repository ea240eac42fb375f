#include <meshstage/core/reshard/device_writes_impl.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include <meshstage/core/image/restore_copies.hpp>
#include <meshstage/core/tensor/device_memory.hpp>
#include <meshstage/core/tensor/strided.hpp>

namespace meshstage::detail {
namespace {

/// Host memory in which elements wait for their devices.
constexpr std::uint64_t kStagedBytes = std::uint64_t{64} << 20U;
/// Of tensors with holes: each run takes some memory, too.
constexpr std::size_t kMostRuns = 100'000;
/// Every element begins at a multiple of its size, and a copy engine is fast from here on.
constexpr std::uint64_t kAlignment = 16;

class DeviceWriter {
 public:
  DeviceWriter(std::uint64_t bytes, std::vector<DeviceReady> ready, Deadline deadline)
      : staged_(Storage::allocate(static_cast<std::size_t>(std::min(bytes, kStagedBytes)))),
        ready_(std::move(ready)) {
    options_.keep = std::make_shared<Storage>(staged_);
    options_.deadline = deadline;
  }

  /// `from` is on the CPU; both have the same shape, and elements.
  void write(const Tensor& to, const Tensor& from) {
    // In the order of the device's memory most tensors are one run, transposed ones too.
    std::vector<std::size_t> dims(to.dim());
    std::iota(dims.begin(), dims.end(), std::size_t{0});
    std::stable_sort(dims.begin(), dims.end(), [&](std::size_t a, std::size_t b) {
      return to.strides()[a] > to.strides()[b];
    });
    add(permuted(to, dims), permuted(from, dims));
  }

  /// Returns when the devices have everything.
  void flush() {
    if (!copies_.empty()) restore_copies(copies_, ready_, options_);
    copies_.clear();
    used_ = 0;
  }

 private:
  static Tensor permuted(const Tensor& tensor, const std::vector<std::size_t>& dims) {
    Shape shape;
    Strides strides;
    for (const std::size_t d : dims) {
      shape.push_back(tensor.shape()[d]);
      strides.push_back(tensor.strides()[d]);
    }
    return Tensor::on_storage(tensor.storage(), tensor.dtype(), std::move(shape),
                              std::move(strides), tensor.storage_offset());
  }

  void add(const Tensor& to, const Tensor& from) {
    if (to.nbytes() > staged_.nbytes()) {
      const auto outer = std::find_if(to.shape().begin(), to.shape().end(),
                                      [](std::int64_t size) { return size > 1; });
      const auto dim = static_cast<std::int64_t>(outer - to.shape().begin());
      const std::int64_t half = *outer / 2;
      add(to.narrow(dim, 0, half), from.narrow(dim, 0, half));
      add(to.narrow(dim, half, *outer - half), from.narrow(dim, half, *outer - half));
      return;
    }
    if (to.nbytes() > staged_.nbytes() - used_ || copies_.size() >= kMostRuns) flush();
    const std::size_t width = size_of(to.dtype());
    const Strides row_major = contiguous_strides(to.shape());
    const Tensor host = Tensor::on_storage(staged_, to.dtype(), to.shape(), row_major,
                                           static_cast<std::int64_t>(used_ / width));
    host.copy_from(from);
    const auto owner = std::make_shared<Storage>(to.storage());
    for_each_run_pair(
        to.shape(), to.strides(), row_major,
        [&](std::int64_t at, std::int64_t source, std::int64_t run) {
          const auto bytes = static_cast<std::size_t>(run) * width;
          std::byte* const begin = to.first_byte() + static_cast<std::size_t>(at) * width;
          copies_.push_back(
              {Storage::wrap(begin, bytes, owner, {}, to.device()),
               {host.first_byte() + static_cast<std::size_t>(source) * width, bytes}});
          return true;
        });
    const std::uint64_t end = used_ + to.nbytes() + kAlignment - 1;
    used_ = std::min<std::uint64_t>(end / kAlignment * kAlignment, staged_.nbytes());
  }

  const Storage staged_;
  const std::vector<DeviceReady> ready_;
  RestoreOptions options_;
  std::uint64_t used_ = 0;  ///< Bytes of staged_ for copies_.
  std::vector<RestoreCopy> copies_;
};

}  // namespace

void write_to_devices(std::span<const BoxTarget> targets, std::span<const TrainerStream> streams,
                      Deadline deadline) {
  std::vector<Storage> storages;
  std::uint64_t bytes = 0;
  for (const BoxTarget& target : targets) {
    if (target.tensor.device().is_cpu()) continue;
    storages.push_back(target.tensor.storage());
    bytes += target.tensor.nbytes();
  }
  if (storages.empty()) return;
  DeviceWriter writer(bytes, record_ready(storages, streams), deadline);
  for (const BoxTarget& target : targets) {
    if (target.tensor.device().is_cpu()) continue;
    for (const auto& [part, from] : target.copies) {
      writer.write(view_of(target.tensor, target.box, part), from);
    }
  }
  writer.flush();
}

}  // namespace meshstage::detail
