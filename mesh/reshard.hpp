#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/placement.hpp>

namespace meshstage {

/// A tensor on a mesh: which rank has which block of it.
struct PlacedTensor {
  DeviceMesh mesh;
  Placements placements;
};

/// A box of a tensor that one rank has before, and another (or the same) wants after.
struct ReshardBox {
  int from = 0;                      ///< Rank of the mesh before.
  int to = 0;                        ///< Rank of the mesh after.
  std::vector<std::int64_t> offset;  ///< In the whole tensor, elements.
  std::vector<std::int64_t> shape;   ///< Elements; none is 0.
  friend bool operator==(const ReshardBox&, const ReshardBox&) = default;
};

/// Who sends which box to whom, so that each rank of `after` has its block of a tensor that lies on
/// `before`. The boxes of one receiver are disjoint and make up its block; they come in the order
/// of the mesh after, then by offset. Nobody sends or receives an empty box. Where several ranks
/// have the same block (the mesh before replicates it), the receiver itself is the sender if it is
/// one of them, else the ranks take turns, receiver by receiver. The two meshes may have other
/// ranks, sizes and numbers of dimensions; a rank's number means the same in both.
///
/// Takes time and memory in the number of boxes, and of blocks along each tensor dimension; no
/// communication. Throws InvalidArgument as Layout does, and for partial placements before: what is
/// still to be reduced cannot be cut (redistribute it first). A partial placement after is refused
/// too.
[[nodiscard]] MESHSTAGE_API std::vector<ReshardBox> plan_reshard(
    const PlacedTensor& before, const PlacedTensor& after,
    std::span<const std::int64_t> tensor_shape);
/// The boxes of one rank of `after` alone; none if it has no element. Throws InvalidArgument
/// besides if the mesh after has no such rank.
[[nodiscard]] MESHSTAGE_API std::vector<ReshardBox> plan_reshard_to(
    const PlacedTensor& before, const PlacedTensor& after,
    std::span<const std::int64_t> tensor_shape, int rank);

}  // namespace meshstage
