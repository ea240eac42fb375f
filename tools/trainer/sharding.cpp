#include "tools/trainer/sharding.hpp"

#include <cstring>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/node.hpp>

namespace trainer {
namespace ms = meshstage;

StatePlacements::StatePlacements(std::size_t mesh_dimensions)
    : parameter(mesh_dimensions, ms::Placement::replicate()), moment(parameter) {
  moment.back() = ms::Placement::shard(0);
}

Sharding::Sharding(const std::vector<std::int64_t>& mesh, int rank, int world_size)
    : mesh_(ms::DeviceMesh::from_shape(mesh)), rank_(rank), placements_(mesh_.ndim()) {
  if (mesh_.size() != world_size) {
    throw ms::InvalidArgument("a mesh of " + std::to_string(mesh_.size()) +
                              " ranks, but the job has " + std::to_string(world_size) +
                              ": the product of --mesh is the number of ranks");
  }
}

Sharding::Part Sharding::part(const ms::Shape& parameter) const {
  const auto coordinate = mesh_.coordinate(rank_);
  const auto shard = ms::Layout(mesh_.shape(), parameter, placements_.moment).at(*coordinate);
  std::int64_t row = 1;
  for (std::size_t d = 1; d < parameter.size(); ++d) row *= parameter[d];
  return {static_cast<std::size_t>(shard.offset[0] * row),
          static_cast<std::size_t>(shard.shape[0] * row)};
}

Sharding::Placed Sharding::place(const ms::Shape& shape, const ms::Placements& placements) const {
  const auto whole = ms::Tensor::zeros(shape, ms::DType::kF32);
  const auto placed = ms::DTensor::from_full(whole, mesh_, rank_, placements);
  return {ms::dtensor::to_value(placed), placed.to_local()};
}

Sharding::Placed Sharding::parameter(const ms::Shape& shape) const {
  return place(shape, placements_.parameter);
}
Sharding::Placed Sharding::moment(const ms::Shape& shape) const {
  return place(shape, placements_.moment);
}

void Sharding::gather(const ms::Tensor& parameter, ms::MeshGroups& groups,
                      ms::Deadline deadline) const {
  const auto own = ms::DTensor::from_full(parameter, mesh_, rank_, placements_.moment);
  const ms::Tensor whole = own.full_tensor(groups, deadline);
  std::memcpy(parameter.data<float>(), whole.data<float>(), whole.nbytes());
}

}  // namespace trainer
