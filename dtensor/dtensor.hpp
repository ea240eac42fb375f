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

/// What a DTensor is on every rank of its mesh alike: all but the elements.
struct MESHSTAGE_API DTensorSpec {
  DeviceMesh mesh;
  Placements placements;  ///< One for each mesh dimension.
  DType dtype = DType::kF32;
  Shape shape;     ///< Of the whole tensor, elements.
  Strides stride;  ///< Of the whole tensor, elements: how full_tensor() lays it out.

  friend bool operator==(const DTensorSpec&, const DTensorSpec&) = default;
  /// "F32[13, 7] as S(0),R on DeviceMesh(dp=2, tp=4; ranks 0..7)".
  [[nodiscard]] std::string to_string() const;
};

/// What from_local() may be told beside the local tensors.
struct FromLocalOptions {
  /// Of the whole tensor. Left out, it is the sum of the local sizes along what is sharded.
  std::optional<Shape> shape = {};
  /// Of the whole tensor; left out, row-major. It has no holes: a permutation of the dimensions of
  /// a row-major tensor.
  std::optional<Strides> stride = {};
};

/// One rank's part of a tensor that lies on a mesh, as PyTorch's DTensor: the local tensor and what
/// it is part of.
///
/// With `Partial(op)` the tensor is, by definition, the reduction of the local tensors along that
/// mesh dimension: with several, along the first mesh dimension first. min and max give NaN if
/// there is one, avg is the sum divided once.
///
/// A handle: copies share the local tensor; the description never changes. Threads: as Tensor.
///
/// Calls that take MeshGroups are collective over the whole mesh: every rank calls them in the same
/// order with equal arguments, until `deadline`. They use the group of all of the mesh's
/// dimensions, whose ranks must be linked with each other. What Transfer::wait throws passes
/// through, and then the groups are of no more use; InvalidArgument is thrown on all ranks alike,
/// before anything is sent, and nothing is lost.
class MESHSTAGE_API DTensor {
 public:
  /// Each rank gives its own local tensor. Checked over all ranks: local shapes are what the
  /// placements make of the whole, dtypes, placements and options are equal. One rank's mistake is
  /// the same InvalidArgument on every rank, and names the rank.
  [[nodiscard]] static DTensor from_local(const Tensor& local, MeshGroups& groups,
                                          const Placements& placements, Deadline deadline,
                                          const FromLocalOptions& options = {});
  /// The part of `rank`, with no communication. Throws InvalidArgument if `local` is not of the
  /// dtype and shape that the spec gives this rank, or the spec makes no sense.
  [[nodiscard]] static DTensor from_spec(Tensor local, DTensorSpec spec, int rank);
  /// Cuts the part of `rank` out of the whole tensor, with no communication: every rank must have
  /// the same. The local tensor has memory of its own. CPU only.
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
  /// The rank whose part this is. In a replica, that of its owner.
  [[nodiscard]] int rank() const noexcept { return rank_; }
  /// Shape of the local tensor, and where in the whole it lies.
  [[nodiscard]] LocalShard local_shard() const;

  /// The same tensor placed otherwise on the same mesh. Equal placements give this one again
  /// (sharing the local tensor), else the local tensor is new and row-major.
  ///
  /// What travels: nothing where the rank has all it needs (slicing); else blocks, pairwise, as an
  /// all-gather, all-to-all or reduce-scatter along just the mesh dimensions that change would send
  /// them. A partial to be replicated is reduced in parts first, then gathered, so that all
  /// replicas have the same bits. A shard or replica that becomes partial stays whole at coordinate
  /// 0 (sum, product; the others get -0.0 or 0, or 1), or at all (avg, min, max).
  ///
  /// Memory, beside this tensor: at most the larger of both local tensors and one shard.
  /// CPU only. Throws InvalidArgument if a partial is to be reduced whose dtype cannot be.
  [[nodiscard]] DTensor redistribute(MeshGroups& groups, const Placements& placements,
                                     Deadline deadline) const;
  /// The whole tensor on every rank, with the strides of the spec; memory of its own.
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

/// Places a tensor that the mesh's first rank has; the others may pass an undefined one, and what
/// they pass is not looked at. Each rank gets its part alone. Collective, as said at DTensor. A
/// first rank without a tensor on the CPU is InvalidArgument on every rank.
[[nodiscard]] MESHSTAGE_API DTensor distribute_tensor(const Tensor& full, MeshGroups& groups,
                                                      const Placements& placements,
                                                      Deadline deadline);

MESHSTAGE_API std::ostream& operator<<(std::ostream& out, const DTensor& tensor);

}  // namespace meshstage
