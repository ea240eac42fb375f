#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tensor/box.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/placement.hpp>

namespace meshstage {

/// The part of a tensor that one rank has. Along a dimension where the box is empty, the offset is
/// the tensor's size, as in PyTorch.
using LocalShard = Box;

/// The blocks of a tensor placed on a mesh. The constructor checks shape and placements, at() gives
/// any rank's block. Mesh dimensions cut the tensor in their order, each one the pieces of those
/// before. A piece of n elements is cut into k parts of ceil(n/k); the last parts may be smaller or
/// empty. Immutable.
class MESHSTAGE_API Layout {
 public:
  /// One placement for each mesh dimension. Throws InvalidArgument if the number differs, a shard
  /// dimension is out of range, a size is negative, or the tensor has more than 2^63-1 elements.
  Layout(std::span<const std::int64_t> mesh_shape, std::span<const std::int64_t> tensor_shape,
         std::span<const Placement> placements);

  [[nodiscard]] const std::vector<std::int64_t>& mesh_shape() const noexcept { return mesh_; }
  [[nodiscard]] const std::vector<std::int64_t>& tensor_shape() const noexcept { return tensor_; }
  /// Shard dimensions are normalized.
  [[nodiscard]] const Placements& placements() const noexcept { return placements_; }
  /// Elements of the whole tensor.
  [[nodiscard]] std::int64_t numel() const noexcept { return numel_; }

  [[nodiscard]] LocalShard at(std::span<const std::int64_t> coordinate) const;
  /// Like at() above, but writes into `shard`, which allocates no memory when it is used again.
  void at(std::span<const std::int64_t> coordinate, LocalShard& shard) const;
  /// Number of elements that the rank at this coordinate has.
  [[nodiscard]] std::int64_t local_numel(std::span<const std::int64_t> coordinate) const;
  /// The distinct sizes of blocks along a tensor dimension, ascending. Does not loop over the
  /// ranks.
  [[nodiscard]] std::vector<std::int64_t> part_sizes(std::size_t tensor_dim) const;
  /// True if all ranks have equally many elements.
  [[nodiscard]] bool is_even() const;
  /// True if every rank has an element.
  [[nodiscard]] bool all_have_elements() const;

 private:
  std::vector<std::int64_t> mesh_;
  std::vector<std::int64_t> tensor_;
  Placements placements_;
  std::int64_t numel_ = 1;
};

/// Layout and at() in one call. The second overload throws InvalidArgument if the mesh has no such
/// rank.
[[nodiscard]] MESHSTAGE_API LocalShard local_shard(std::span<const std::int64_t> mesh_shape,
                                                   std::span<const std::int64_t> coordinate,
                                                   std::span<const std::int64_t> tensor_shape,
                                                   std::span<const Placement> placements);
[[nodiscard]] MESHSTAGE_API LocalShard local_shard(const DeviceMesh& mesh, int rank,
                                                   std::span<const std::int64_t> tensor_shape,
                                                   std::span<const Placement> placements);

}  // namespace meshstage
