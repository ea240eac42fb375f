#pragma once
#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/mesh_groups.hpp>
#include <meshstage/mesh/placement.hpp>

namespace meshstage {

/// The description of a DTensor, equal on every rank of its mesh: everything but the elements.
struct MESHSTAGE_API DTensorSpec {
  DeviceMesh mesh;
  Placements placements;  ///< One for each mesh dimension.
  DType dtype = DType::kF32;
  Shape shape;     ///< Of the whole tensor, elements.
  Strides stride;  ///< Of full_tensor()'s result, elements.

  friend bool operator==(const DTensorSpec&, const DTensorSpec&) = default;
  /// "F32[13, 7] as S(0),R on DeviceMesh(dp=2, tp=4; ranks 0..7)".
  [[nodiscard]] std::string to_string() const;
};

/// Further arguments of from_local().
struct FromLocalOptions {
  /// Shape of the whole tensor. Default: along sharded dimensions the sum of the local sizes.
  std::optional<Shape> shape = {};
  /// Strides of the whole tensor; default: row-major. They must leave no holes: those of a
  /// row-major tensor whose dimensions are permuted.
  std::optional<Strides> stride = {};
};

/// One rank's part of a tensor on a mesh, like PyTorch's DTensor: the local tensor and the
/// description of the whole.
///
/// With `Partial(op)` the tensor is, by definition, the reduction of the local tensors along that
/// mesh dimension; with several Partials the first mesh dimension is reduced first. min and max
/// give NaN if an element is NaN; avg is the sum divided once.
///
/// A handle: copies share the local tensor; the description never changes. Threads: see Tensor.
///
/// Calls that take MeshGroups are collective over the whole mesh: every rank makes them in the same
/// order with equal arguments. They use the group of all the mesh's dimensions, whose ranks must be
/// linked with each other. They pass on the errors of Transfer::wait, which come by `deadline` at
/// the latest; then the groups are of no more use. InvalidArgument comes on all ranks alike, before
/// anything is sent, and the groups stay usable.
class MESHSTAGE_API DTensor {
 public:
  /// Makes a DTensor of local tensors: each rank gives its own. Checks over all ranks that local
  /// shapes fit the placements and the whole, and that dtypes, placements and options are equal. A
  /// mistake of one rank gives the same InvalidArgument on every rank, which names the rank.
  [[nodiscard]] static DTensor from_local(const Tensor& local, MeshGroups& groups,
                                          const Placements& placements, Deadline deadline,
                                          const FromLocalOptions& options = {});
  /// The part of `rank`, without communication. Throws InvalidArgument if `local` has not the dtype
  /// and shape that the spec gives this rank, or if the spec contradicts itself.
  [[nodiscard]] static DTensor from_spec(Tensor local, DTensorSpec spec, int rank);
  /// Cuts the part of `rank` out of the whole tensor, without communication: every rank must give
  /// the same `full`. The local tensor has memory of its own. CPU only.
  [[nodiscard]] static DTensor from_full(const Tensor& full, const DeviceMesh& mesh, int rank,
                                         const Placements& placements);

  /// This rank's part: the same tensor object, not a copy.
  [[nodiscard]] const Tensor& to_local() const noexcept { return local_; }
  [[nodiscard]] const DTensorSpec& spec() const noexcept { return *spec_; }
  [[nodiscard]] const DeviceMesh& mesh() const noexcept { return spec_->mesh; }
  /// Shard dimensions are normalized: never negative.
  [[nodiscard]] const Placements& placements() const noexcept { return spec_->placements; }
  [[nodiscard]] DType dtype() const noexcept { return spec_->dtype; }
  /// Of the whole tensor.
  [[nodiscard]] const Shape& shape() const noexcept { return spec_->shape; }
  [[nodiscard]] const Strides& stride() const noexcept { return spec_->stride; }
  /// The rank whose part this is; in a replica the owner.
  [[nodiscard]] int rank() const noexcept { return rank_; }
  /// Shape of the local tensor, and its offset in the whole.
  [[nodiscard]] LocalShard local_shard() const;

  /// The same tensor with other placements on the same mesh. Equal placements give a copy of this
  /// handle; otherwise the local tensor is new and row-major.
  ///
  /// Communication: none where the rank has all elements that it needs (slicing). Otherwise ranks
  /// exchange blocks pairwise, like an all-gather, all-to-all or reduce-scatter along only the mesh
  /// dimensions that change. A partial that becomes a replica is reduced in parts first and then
  /// gathered, so that all replicas have the same bits.
  /// A shard or replica that becomes partial keeps its elements at coordinate 0 alone (sum,
  /// product; other coordinates get -0.0 or 0, or 1) or at every coordinate (avg, min, max).
  ///
  /// Memory, beside this tensor: at most the larger of both local tensors and one shard.
  /// CPU only. Throws InvalidArgument if a partial must be reduced and its dtype cannot be.
  [[nodiscard]] DTensor redistribute(MeshGroups& groups, const Placements& placements,
                                     Deadline deadline) const;
  /// The whole tensor on every rank, with the strides of the spec, in memory of its own.
  [[nodiscard]] Tensor full_tensor(MeshGroups& groups, Deadline deadline) const;

  /// "DTensor(F32[13, 7] as S(0),R on DeviceMesh(...); rank 3 has [7, 7] at [0, 0])".
  [[nodiscard]] std::string to_string() const;

 private:
  DTensor(Tensor local, std::shared_ptr<const DTensorSpec> spec, int rank)
      : local_(std::move(local)), spec_(std::move(spec)), rank_(rank) {}
  void check_groups(const MeshGroups& groups, const char* call) const;
  Tensor local_;
  std::shared_ptr<const DTensorSpec> spec_;
  int rank_ = 0;
};

/// Distributes a tensor that the mesh's first rank has; the `full` of other ranks is ignored and
/// may be undefined. Each rank gets only its part. Collective: see DTensor. If the first rank has
/// no tensor on the CPU, every rank gets InvalidArgument.
[[nodiscard]] MESHSTAGE_API DTensor distribute_tensor(const Tensor& full, MeshGroups& groups,
                                                      const Placements& placements,
                                                      Deadline deadline);

MESHSTAGE_API std::ostream& operator<<(std::ostream& out, const DTensor& tensor);

}  // namespace meshstage
