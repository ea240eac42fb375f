#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/failure_domains.hpp>
#include <meshstage/mesh/layout.hpp>

/// Tensors that the mesh already replicates. A tensor that is Replicate along a mesh dimension is
/// on all ranks of that dimension's groups, in training memory and in their own images. Pure
/// functions of mesh and placements, so that all ranks get the same results.
namespace meshstage {

/// One coordinate along a named dimension of a mesh; for example pp=1, a pipeline's second stage.
struct MeshCoordinate {
  std::string dim;
  std::int64_t coordinate = 0;
  friend bool operator==(const MeshCoordinate&, const MeshCoordinate&) = default;
};

/// The description of a tensor on a mesh that planning needs.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  Placements placements;  ///< One for each mesh dimension that `only` does not name.
  std::string dtype = "f32";
  std::int64_t element_bytes = 4;
  /// The tensor lies on the part of the mesh with these coordinates; other ranks have no part of
  /// it. Empty: the tensor lies on the whole mesh.
  std::vector<MeshCoordinate> only = {};
};

/// The part of a mesh that a tensor lies on, and its placements there. The part has all dimensions
/// of the mesh; those that TensorSpec::only names have size 1. There is a placement for each
/// dimension.
struct TensorPlace {
  DeviceMesh mesh;
  Placements placements;
};
/// Throws InvalidArgument if the mesh has no such coordinates, if a dimension is named twice, or
/// unless there is one placement for each other dimension (Layout checks that where `only` is
/// empty).
[[nodiscard]] MESHSTAGE_API TensorPlace place_of(const DeviceMesh& mesh, const TensorSpec& tensor);
/// "pp=1,tp=0"; empty for a tensor on the whole mesh.
[[nodiscard]] MESHSTAGE_API std::string to_string(std::span<const MeshCoordinate> only);

/// Bytes of one element of a dtype: bool, u8, i8, i16, i32, i64, f16, bf16, f32, f64, c64 or c128.
/// Throws InvalidArgument; the message lists the dtypes.
[[nodiscard]] MESHSTAGE_API std::int64_t element_bytes_of(std::string_view dtype);
/// Reads "NAME=DTYPE[SIZES]:PLACEMENTS", such as "w=f32[1024,512]:S(0),R", with
/// "@DIMENSION=COORDINATE,..." behind it for a tensor on a part of the mesh. Throws
/// InvalidArgument.
[[nodiscard]] MESHSTAGE_API TensorSpec parse_tensor_spec(std::string_view text);
/// Bytes of the whole tensor. Throws InvalidArgument if they do not fit 63 bits or if a size is
/// negative.
[[nodiscard]] MESHSTAGE_API std::int64_t checked_bytes(const TensorSpec& tensor);

/// The ranks that have the same elements of a tensor as `rank`, itself included, in the mesh's
/// order. Their coordinates differ only along Replicate dimensions; each Partial contribution
/// belongs to one rank. Throws InvalidArgument if the mesh has no such rank.
[[nodiscard]] MESHSTAGE_API std::vector<int> same_shard_ranks(const DeviceMesh& mesh,
                                                              std::span<const Placement> placements,
                                                              int rank);

/// True if both ranks have the same elements of a tensor, and so the same bytes: their coordinates
/// differ along Replicate dimensions alone. False if one of them is not on the mesh. Throws
/// InvalidArgument unless there is one placement for each dimension.
[[nodiscard]] MESHSTAGE_API bool same_shard(const DeviceMesh& mesh,
                                            std::span<const Placement> placements, int a, int b);

/// The lender from which copies of rank `rank`'s image borrow its part of a tensor: a rank in
/// another failure domain that has the same elements in its own image. Nothing if there is no such
/// rank, or if `rank` is not on the mesh.
///
/// The search tries the sets of Replicate dimensions, small sets first and then in the mesh's
/// order, so that a rank depends on few others whatever its tensors are. The first set that reaches
/// another domain decides. The lender is the next rank after `rank`, in row-major order and around
/// its end, that differs along this set alone and lies in another domain.
///
/// Throws InvalidArgument unless there is one placement for each dimension, if a rank that the
/// search visits has no host, and for kRack if racks are not known.
[[nodiscard]] MESHSTAGE_API std::optional<int> lender_of(const DeviceMesh& mesh,
                                                         std::span<const Placement> placements,
                                                         const FailureDomains& domains, int rank,
                                                         DomainLevel level = DomainLevel::kHost);
/// lender_of() for every rank of the mesh, by place in row-major order; -1 where there is none. The
/// time is proportional to the number of ranks, for each set of dimensions that the search tries:
/// few, unless hosts lie across the mesh without order.
[[nodiscard]] MESHSTAGE_API std::vector<int> lenders_by_place(
    const DeviceMesh& mesh, std::span<const Placement> placements, const FailureDomains& domains,
    DomainLevel level = DomainLevel::kHost);
/// For every rank of the world all ranks that lender_of() can return for any placements, ascending;
/// none for a rank that is not on the mesh. Takes the time of lenders_by_place().
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> possible_lenders(
    const DeviceMesh& mesh, const FailureDomains& domains, DomainLevel level = DomainLevel::kHost);
/// For every rank of the world the ranks from which copies of its image borrow, ascending: the
/// results of lender_of() for those of these tensors of which the rank has elements.
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> lenders_of(
    const DeviceMesh& mesh, std::span<const TensorSpec> tensors, const FailureDomains& domains,
    DomainLevel level = DomainLevel::kHost);

}  // namespace meshstage
