#include <meshstage/dtensor/dtensor.hpp>

#include <ostream>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/redistribute_impl.hpp>
#include <meshstage/dtensor/spec_impl.hpp>
#include <meshstage/mesh/block_exchange.hpp>

namespace meshstage {
namespace {

void require_cpu(const Tensor& tensor, const char* call) {
  if (tensor.device().is_cpu()) return;
  throw InvalidArgument(std::string(call) + " moves elements of CPU tensors only; this one is on " +
                        to_string(tensor.device()) + ". Copy the local tensor to the CPU first");
}

Tensor empty_strided(const Shape& shape, const Strides& strides, DType dtype) {
  const Tensor tensor = Tensor::empty(shape, dtype);
  return dtensor::is_dense(shape, strides) ? tensor.as_strided(shape, strides, 0) : tensor;
}

}  // namespace

std::string DTensorSpec::to_string() const {
  return std::string(meshstage::to_string(dtype)) + meshstage::to_string(shape) + " as " +
         meshstage::to_string(placements) + " on " + mesh.to_string();
}

namespace dtensor {

void check_spec(DTensorSpec& spec) {
  const Layout layout(spec.mesh.shape(), spec.shape, spec.placements);
  spec.placements = layout.placements();
  if (!is_dense(spec.shape, spec.stride)) {
    throw InvalidArgument("strides " + meshstage::to_string(spec.stride) + " are not those of a " +
                          "tensor " + meshstage::to_string(spec.shape) +
                          " without holes: give a permutation of row-major strides, or none");
  }
}

Coordinate require_coordinate(const DeviceMesh& mesh, int rank) {
  auto coordinate = mesh.coordinate(rank);
  if (coordinate) return *std::move(coordinate);
  throw InvalidArgument("rank " + std::to_string(rank) + " is not in " + mesh.to_string() +
                        ": only its ranks have a part of a tensor on it");
}

}  // namespace dtensor

DTensor DTensor::from_spec(Tensor local, DTensorSpec spec, int rank) {
  if (!local.defined()) throw InvalidArgument("from_spec() got an undefined local tensor");
  dtensor::check_spec(spec);
  const auto coordinate = dtensor::require_coordinate(spec.mesh, rank);
  const auto shard =
      meshstage::local_shard(spec.mesh.shape(), coordinate, spec.shape, spec.placements);
  if (local.dtype() != spec.dtype || local.shape() != shard.shape) {
    throw make_error<InvalidArgument>(
        "the local tensor of rank " + std::to_string(rank) + " is " + local.describe() +
            ", but its part of " + spec.to_string() + " is " +
            std::string(meshstage::to_string(spec.dtype)) + meshstage::to_string(shard.shape),
        rank);
  }
  return {std::move(local), std::make_shared<const DTensorSpec>(std::move(spec)), rank};
}

DTensor DTensor::from_full(const Tensor& full, const DeviceMesh& mesh, int rank,
                           const Placements& placements) {
  if (!full.defined()) throw InvalidArgument("from_full() got an undefined tensor");
  require_cpu(full, "from_full()");
  DTensorSpec spec{mesh, placements, full.dtype(), full.shape(), full.strides()};
  if (!dtensor::is_dense(spec.shape, spec.stride)) spec.stride = contiguous_strides(spec.shape);
  dtensor::check_spec(spec);
  const auto coordinate = dtensor::require_coordinate(mesh, rank);
  const auto shard = meshstage::local_shard(mesh.shape(), coordinate, spec.shape, spec.placements);
  const LocalShard whole{spec.shape, Shape(spec.shape.size(), 0)};
  const auto what =
      dtensor::fill_at(spec.placements, std::vector<bool>(mesh.ndim(), false), coordinate);
  const Tensor local = Tensor::empty(shard.shape, spec.dtype);
  if (what == dtensor::Fill::kElements) {
    local.copy_from(blocks::view_of(full, whole, shard));
  } else {
    dtensor::fill(local, what);
  }
  return {local, std::make_shared<const DTensorSpec>(std::move(spec)), rank};
}

LocalShard DTensor::local_shard() const {
  return meshstage::local_shard(spec_->mesh, rank_, spec_->shape, spec_->placements);
}

void DTensor::check_groups(const MeshGroups& groups, const char* call) const {
  if (groups.mesh() == spec_->mesh && groups.rank() == rank_) return;
  throw InvalidArgument(std::string(call) + " of rank " + std::to_string(rank_) +
                        "'s part of a tensor on " + spec_->mesh.to_string() +
                        " was given the groups of rank " + std::to_string(groups.rank()) + " on " +
                        groups.mesh().to_string());
}

DTensor DTensor::redistribute(MeshGroups& groups, const Placements& placements,
                              Deadline deadline) const {
  check_groups(groups, "redistribute()");
  DTensorSpec spec = *spec_;
  spec.placements = placements;
  dtensor::check_spec(spec);
  if (spec.placements == spec_->placements) return *this;
  require_cpu(local_, "redistribute()");
  const auto shard = meshstage::local_shard(spec.mesh, rank_, spec.shape, spec.placements);
  const Tensor result = Tensor::empty(shard.shape, spec.dtype);
  dtensor::redistribute_into(local_, {spec.mesh, spec.shape, spec_->placements}, spec.placements,
                             result, groups, deadline);
  return {result, std::make_shared<const DTensorSpec>(std::move(spec)), rank_};
}

Tensor DTensor::full_tensor(MeshGroups& groups, Deadline deadline) const {
  check_groups(groups, "full_tensor()");
  require_cpu(local_, "full_tensor()");
  const Tensor result = empty_strided(spec_->shape, spec_->stride, spec_->dtype);
  dtensor::redistribute_into(local_, {spec_->mesh, spec_->shape, spec_->placements},
                             Placements(spec_->mesh.ndim()), result, groups, deadline);
  return result;
}

std::string DTensor::to_string() const {
  const auto shard = local_shard();
  return "DTensor(" + spec_->to_string() + "; rank " + std::to_string(rank_) + " has " +
         meshstage::to_string(shard.shape) + " at " + meshstage::to_string(shard.offset) + ")";
}

std::ostream& operator<<(std::ostream& out, const DTensor& tensor) {
  return out << tensor.to_string();
}

}  // namespace meshstage
