#pragma once
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/mesh_groups.hpp>

/// The parts of redistribute(), full_tensor(), distribute_tensor() and from_full().
namespace meshstage::dtensor {

using Coordinate = std::vector<std::int64_t>;

/// Which rank has which block of a tensor. For each mesh dimension it is replicate, shard, partial,
/// or *root*: only coordinate 0 has elements.
class Side {
 public:
  Side(const DeviceMesh& mesh, const Shape& shape, const Placements& placements,
       std::vector<bool> root = {});
  /// The whole tensor at the mesh's first rank alone.
  [[nodiscard]] static Side at_first_rank(const DeviceMesh& mesh, const Shape& shape);

  [[nodiscard]] const Layout& layout() const noexcept { return layout_; }
  [[nodiscard]] const Placement& placement(std::size_t dim) const {
    return layout_.placements()[dim];
  }
  [[nodiscard]] bool root(std::size_t dim) const { return root_[dim]; }
  /// Nothing at a coordinate without elements.
  [[nodiscard]] std::optional<LocalShard> at(const Coordinate& coordinate) const;

 private:
  Layout layout_;
  std::vector<bool> root_;
};

/// The contents of a rank's local tensor when a tensor becomes partial.
enum class Fill : std::uint8_t {
  kElements,  ///< the tensor's elements
  kZero,      ///< the value that leaves a sum unchanged: -0.0, or 0
  kOne
};
/// The contents at a coordinate for placements `to`; the mesh dimensions `kept` were partial
/// before. Reductions go along the first mesh dimension first. So along the last dimension
/// coordinate 0 has the elements and the others a value that leaves the reduction unchanged, and so
/// on towards the first.
[[nodiscard]] Fill fill_at(const Placements& to, const std::vector<bool>& kept,
                           const Coordinate& coordinate);
/// Fills a tensor of any dtype; nothing for kElements.
void fill(const Tensor& tensor, Fill what);

/// Throws InvalidArgument unless `op` can reduce elements of this dtype.
void check_reducible(DType dtype, ReduceOp op);

/// Reduces, moves and fills. `local` is the calling rank's part under `from` (undefined if it has
/// none); `result` gets its part under the placements `to`. Collective.
void redistribute_into(const Tensor& local, const Side& from, const Placements& to,
                       const Tensor& result, MeshGroups& groups, Deadline deadline);

/// True if these are the strides of a row-major tensor with its dimensions permuted.
[[nodiscard]] bool is_dense(const Shape& shape, const Strides& strides);

}  // namespace meshstage::dtensor
