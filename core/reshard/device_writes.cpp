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
/// Runs of elements that wait there: a tensor with holes may have one for each element.
constexpr std::int64_t kMostRuns = 100'000;
/// Bytes. A piece begins at a multiple: so does each element, and copy engines are fast.
constexpr std::uint64_t kAlignment = 16;

/// The dimensions in the order in which they lie in memory: by falling stride.
std::vector<std::size_t> memory_order(const Tensor& tensor) {
  std::vector<std::size_t> dims(tensor.dim());
  std::iota(dims.begin(), dims.end(), std::size_t{0});
  std::stable_sort(dims.begin(), dims.end(), [&](std::size_t a, std::size_t b) {
    return tensor.strides()[a] > tensor.strides()[b];
  });
  return dims;
}

/// A box of a target, with its dimensions in the order in which they lie in memory. Most tensors
/// are one run of elements then, transposed ones too.
struct Piece {
  Tensor to;
  Shape shape;
  Strides strides;
  Strides packed;  ///< Without holes, as the elements wait in host memory.

  Piece(Tensor tensor, const std::vector<std::size_t>& dims) : to(std::move(tensor)) {
    for (const std::size_t d : dims) {
      shape.push_back(to.shape()[d]);
      strides.push_back(to.strides()[d]);
    }
    packed = contiguous_strides(shape);
  }
  [[nodiscard]] std::int64_t runs() const {
    return to.numel() / run_length(shape, strides, packed).elements;
  }
};

class DeviceWriter {
 public:
  DeviceWriter(std::uint64_t bytes, std::vector<DeviceReady> ready, Deadline deadline)
      : staged_(Storage::allocate(static_cast<std::size_t>(std::min(bytes, kStagedBytes)))),
        ready_(std::move(ready)) {
    options_.keep = std::make_shared<Storage>(staged_);
    options_.deadline = deadline;
  }

  void write(const BoxTarget& target) { write(target, target.box); }

  /// Returns when the devices have everything.
  void flush() {
    if (!copies_.empty()) restore_copies(copies_, ready_, options_);
    copies_.clear();
    used_ = 0;
  }

 private:
  void write(const BoxTarget& target, const Box& box) {
    const Tensor to = view_of(target.tensor, target.box, box);
    const auto dims = memory_order(to);
    const Piece piece(to, dims);
    if (to.nbytes() > staged_.nbytes() || piece.runs() > kMostRuns) {
      const auto outer =
          std::find_if(dims.begin(), dims.end(), [&](std::size_t d) { return box.shape[d] > 1; });
      Box half = box;
      half.shape[*outer] /= 2;
      write(target, half);
      half.offset[*outer] += half.shape[*outer];
      half.shape[*outer] = box.shape[*outer] - half.shape[*outer];
      write(target, half);
      return;
    }
    if (to.nbytes() > staged_.nbytes() - used_ ||
        static_cast<std::int64_t>(copies_.size()) + piece.runs() > kMostRuns) {
      flush();
    }
    fill(target, box, dims, piece);
    add_runs(piece);
    const std::uint64_t end = used_ + to.nbytes() + kAlignment - 1;
    used_ = std::min<std::uint64_t>(end / kAlignment * kAlignment, staged_.nbytes());
  }

  /// Puts the box's elements together at used_.
  void fill(const BoxTarget& target, const Box& box, const std::vector<std::size_t>& dims,
            const Piece& piece) {
    Strides strides(dims.size());
    for (std::size_t i = 0; i < dims.size(); ++i) strides[dims[i]] = piece.packed[i];
    const auto width = size_of(piece.to.dtype());
    const Tensor host = Tensor::on_storage(staged_, piece.to.dtype(), box.shape, std::move(strides),
                                           static_cast<std::int64_t>(used_ / width));
    for (const auto& [part, from] : target.copies) {
      const Box both = intersection(part, box);
      if (!both.empty()) view_of(host, box, both).copy_from(view_of(from, part, both));
    }
  }

  void add_runs(const Piece& piece) {
    const auto width = size_of(piece.to.dtype());
    const auto owner = std::make_shared<Storage>(piece.to.storage());
    const auto at = [&](std::byte* first, std::int64_t elements) {
      return first + static_cast<std::size_t>(elements) * width;
    };
    for_each_run_pair(piece.shape, piece.strides, piece.packed,
                      [&](std::int64_t to, std::int64_t from, std::int64_t run) {
                        const auto bytes = static_cast<std::size_t>(run) * width;
                        copies_.push_back({Storage::wrap(at(piece.to.first_byte(), to), bytes,
                                                         owner, {}, piece.to.device()),
                                           {at(staged_.data() + used_, from), bytes}});
                        return true;
                      });
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
    if (!target.tensor.device().is_cpu()) writer.write(target);
  }
  writer.flush();
}

}  // namespace meshstage::detail
