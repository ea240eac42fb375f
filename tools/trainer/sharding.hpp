#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/core/tree/value.hpp>
#include <meshstage/dtensor/dtensor.hpp>
#include <meshstage/mesh/mesh_groups.hpp>

namespace trainer {

/// Where the tensors of a training state lie on a mesh of so many dimensions, at least one:
/// parameters are on every rank, the optimizer's moments are cut along the last dimension (their
/// dimension 0) and repeated along the others.
struct StatePlacements {
  explicit StatePlacements(std::size_t mesh_dimensions);
  meshstage::Placements parameter;
  meshstage::Placements moment;
};

/// How training is laid out on a mesh, as StatePlacements says. Each rank updates the part of a
/// parameter of which it has the moments, then the parts are gathered.
/// Each number is computed as without a mesh, so that the results are the same bits.
class Sharding {
 public:
  /// Throws meshstage::InvalidArgument if the mesh has another number of ranks.
  Sharding(const std::vector<std::int64_t>& mesh, int rank, int world_size);

  /// Elements of a parameter, of which this rank has the moments.
  struct Part {
    std::size_t begin = 0;
    std::size_t elements = 0;
  };
  [[nodiscard]] Part part(const meshstage::Shape& parameter) const;

  /// A DTensor of zeros, as a value for the state dict, and its local tensor.
  struct Placed {
    meshstage::Value value;
    meshstage::Tensor local;
  };
  [[nodiscard]] Placed parameter(const meshstage::Shape& shape) const;
  [[nodiscard]] Placed moment(const meshstage::Shape& shape) const;

  /// Takes every rank's part into this rank's whole parameter. Collective over the mesh.
  void gather(const meshstage::Tensor& parameter, meshstage::MeshGroups& groups,
              meshstage::Deadline deadline) const;

  [[nodiscard]] const meshstage::DeviceMesh& mesh() const { return mesh_; }

 private:
  [[nodiscard]] Placed place(const meshstage::Shape& shape,
                             const meshstage::Placements& placements) const;

  meshstage::DeviceMesh mesh_;
  int rank_;
  StatePlacements placements_;
};

}  // namespace trainer
