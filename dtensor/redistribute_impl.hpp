#pragma once
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/mesh_groups.hpp>

/// What redistribute(), full_tensor(), distribute_tensor() and from_full() are made of.
namespace meshstage::dtensor {

using Coordinate = std::vector<std::int64_t>;

/// Who has which block of a tensor: placements, or more generally for each mesh dimension
/// replicate, shard, partial, or *root*: only coordinate 0 has it.
class Side {
 public:
  Side(const DeviceMesh& mesh, const Shape& shape, const Placements& placements,
       std::vector<bool> root = {});
  /// Everything at the mesh's first rank alone.
  [[nodiscard]] static Side at_first_rank(const DeviceMesh& mesh, const Shape& shape);

  [[nodiscard]] const Layout& layout() const noexcept { return layout_; }
  [[nodiscard]] const Placement& placement(std::size_t dim) const {
    return layout_.placements()[dim];
  }
  [[nodiscard]] bool root(std::size_t dim) const { return root_[dim]; }
  /// Nothing where only others have it.
  [[nodiscard]] std::optional<LocalShard> at(const Coordinate& coordinate) const;

 private:
  Layout layout_;
  std::vector<bool> root_;
};

/// What a rank's local tensor is filled with where partials are made of a tensor that is none.
enum class Fill : std::uint8_t {
  kElements,  ///< the tensor's elements
  kZero,      ///< what a sum does not notice: -0.0, or 0
  kOne
};
/// For placements `to`, of which the mesh dimensions `kept` were partial before. Reductions go
/// along the first mesh dimension first, so the last one sees the elements at coordinate 0, and
/// what it does not notice elsewhere, and so on towards the first.
[[nodiscard]] Fill fill_at(const Placements& to, const std::vector<bool>& kept,
                           const Coordinate& coordinate);
/// Fills a tensor of any dtype; nothing for kElements.
void fill(const Tensor& tensor, Fill what);

/// Throws InvalidArgument unless `op` can reduce elements of this dtype.
void check_reducible(DType dtype, ReduceOp op);

/// Reduces, moves, fills: `result` gets the calling rank's part under the placements `to` of a
/// tensor of which `local` is its part under `from` (undefined where it has none). Collective.
void redistribute_into(const Tensor& local, const Side& from, const Placements& to,
                       const Tensor& result, MeshGroups& groups, Deadline deadline);

/// True if these are the strides of a row-major tensor with its dimensions permuted.
[[nodiscard]] bool is_dense(const Shape& shape, const Strides& strides);

}  // namespace meshstage::dtensor
