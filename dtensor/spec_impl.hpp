#pragma once
#include <meshstage/dtensor/dtensor.hpp>
#include <meshstage/dtensor/redistribute_impl.hpp>

namespace meshstage::dtensor {

/// Normalizes the placements. Throws InvalidArgument if they do not fit mesh or shape, or the
/// strides are not those of a tensor without holes.
void check_spec(DTensorSpec& spec);
/// Throws InvalidArgument if the mesh has no such rank.
[[nodiscard]] Coordinate require_coordinate(const DeviceMesh& mesh, int rank);

}  // namespace meshstage::dtensor
