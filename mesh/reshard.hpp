#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/placement.hpp>

namespace meshstage {

/// The placement of a tensor on a mesh, which gives each rank's block.
struct PlacedTensor {
  DeviceMesh mesh;
  Placements placements;
};

/// A box of a tensor that rank `from` has before and rank `to` needs after; both may be the same
/// rank.
struct ReshardBox {
  int from = 0;                      ///< Rank of the mesh before.
  int to = 0;                        ///< Rank of the mesh after.
  std::vector<std::int64_t> offset;  ///< In the whole tensor, elements.
  std::vector<std::int64_t> shape;   ///< Elements; none is 0.
  friend bool operator==(const ReshardBox&, const ReshardBox&) = default;
};

/// Plans the boxes that ranks must send, so that each rank of `after` gets its block of a tensor
/// that lies on `before`. The boxes of one receiver are disjoint and make up its block. They are in
/// the order of the mesh `after`, then by offset; none is empty.
/// Where several ranks have the same block (`before` replicates it), a receiver that is one of them
/// is its own sender; else the ranks take turns, receiver by receiver. The two meshes may differ in
/// ranks, sizes and numbers of dimensions; a rank's number means the same process in both.
///
/// Time and memory are proportional to the number of boxes, and of blocks along each tensor
/// dimension; there is no communication. Throws InvalidArgument like Layout, and for a partial
/// placement in either mesh: contributions that are not reduced yet cannot be cut (redistribute
/// first).
[[nodiscard]] MESHSTAGE_API std::vector<ReshardBox> plan_reshard(
    const PlacedTensor& before, const PlacedTensor& after,
    std::span<const std::int64_t> tensor_shape);
/// The boxes for one rank of `after`; none if the rank has no element. Throws InvalidArgument also
/// if `after` has no such rank.
[[nodiscard]] MESHSTAGE_API std::vector<ReshardBox> plan_reshard_to(
    const PlacedTensor& before, const PlacedTensor& after,
    std::span<const std::int64_t> tensor_shape, int rank);

}  // namespace meshstage
