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

/// What the mesh already replicates: a tensor that is Replicate along a mesh dimension is on all
/// ranks of that dimension's groups, in training memory and in their own images. Pure functions of
/// mesh and placements, so that all ranks come to the same answer.
namespace meshstage {

/// One coordinate along a named dimension of a mesh: pp=1 is a pipeline's second stage.
struct MeshCoordinate {
  std::string dim;
  std::int64_t coordinate = 0;
  friend bool operator==(const MeshCoordinate&, const MeshCoordinate&) = default;
};

/// A tensor on a mesh, as far as planning needs it.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  Placements placements;  ///< One for each mesh dimension that `only` does not name.
  std::string dtype = "f32";
  std::int64_t element_bytes = 4;
  /// The tensor lies on the part of the mesh that has these coordinates; no other rank has any of
  /// it. Empty: on the whole mesh.
  std::vector<MeshCoordinate> only = {};
};

/// Where a tensor lies: a mesh of as many dimensions as the whole one, in which those that
/// TensorSpec::only names have size 1, and a placement for each of them.
struct TensorPlace {
  DeviceMesh mesh;
  Placements placements;
};
/// Throws InvalidArgument if the mesh has no such coordinates, one dimension is named twice, or
/// there is not one placement for each other dimension (Layout checks it where `only` is empty).
[[nodiscard]] MESHSTAGE_API TensorPlace place_of(const DeviceMesh& mesh, const TensorSpec& tensor);
/// "pp=1,tp=0"; empty for a tensor on the whole mesh.
[[nodiscard]] MESHSTAGE_API std::string to_string(std::span<const MeshCoordinate> only);

/// Bytes of one element: bool, u8, i8, i16, i32, i64, f16, bf16, f32, f64, c64, c128. Throws
/// InvalidArgument that lists them.
[[nodiscard]] MESHSTAGE_API std::int64_t element_bytes_of(std::string_view dtype);
/// "NAME=DTYPE[SIZES]:PLACEMENTS", such as "w=f32[1024,512]:S(0),R", and behind that
/// "@DIMENSION=COORDINATE,..." for a tensor on a part of the mesh. Throws InvalidArgument.
[[nodiscard]] MESHSTAGE_API TensorSpec parse_tensor_spec(std::string_view text);
/// Bytes of the whole tensor. Throws InvalidArgument if they do not fit 63 bits or a size is
/// negative.
[[nodiscard]] MESHSTAGE_API std::int64_t checked_bytes(const TensorSpec& tensor);

/// The ranks that have the same elements of a tensor as `rank` has, itself included, in the mesh's
/// order: those whose coordinates differ only along Replicate dimensions. A Partial contribution is
/// its rank's own. Throws InvalidArgument if the mesh has no such rank.
[[nodiscard]] MESHSTAGE_API std::vector<int> same_shard_ranks(const DeviceMesh& mesh,
                                                              std::span<const Placement> placements,
                                                              int rank);

/// True if both ranks have the same elements of a tensor, and so the same bytes: their coordinates
/// differ along Replicate dimensions alone. False where one is not on the mesh. Throws
/// InvalidArgument unless there is one placement for each dimension.
[[nodiscard]] MESHSTAGE_API bool same_shard(const DeviceMesh& mesh,
                                            std::span<const Placement> placements, int a, int b);

/// Borrowed tensors: the copies of the image of `rank` leave out its part of a tensor if a rank in
/// another failure domain, the lender, has the same elements in its own image. Returns the lender;
/// nothing if there is none, or the mesh has no such `rank`.
///
/// So that a rank depends on few others whatever its tensors, the sets of Replicate dimensions are
/// looked at small ones first, and then in the mesh's order: the first that reaches another domain
/// decides. Among the ranks that differ along these alone it is the next after `rank`, in their
/// row-major order and around its end, that lies in another domain.
///
/// Throws InvalidArgument unless there is one placement for each dimension, if a rank that is
/// looked at has no host, and for kRack if racks are not known.
[[nodiscard]] MESHSTAGE_API std::optional<int> lender_of(const DeviceMesh& mesh,
                                                         std::span<const Placement> placements,
                                                         const FailureDomains& domains, int rank,
                                                         DomainLevel level = DomainLevel::kHost);
/// The same for every rank of the mesh, by place in its row-major order; -1 where there is none.
/// Takes time in proportion to the ranks, whatever the domains are, for each set of dimensions that
/// has to be looked at: few, unless hosts lie across the mesh without order.
[[nodiscard]] MESHSTAGE_API std::vector<int> lenders_by_place(
    const DeviceMesh& mesh, std::span<const Placement> placements, const FailureDomains& domains,
    DomainLevel level = DomainLevel::kHost);
/// For every rank of the world all ranks that lender_of() can give for any placements, ascending;
/// none for a rank that is not on the mesh. Time as lenders_by_place().
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> possible_lenders(
    const DeviceMesh& mesh, const FailureDomains& domains, DomainLevel level = DomainLevel::kHost);
/// For every rank of the world the ranks that lender_of() gives for those of these tensors of which
/// it has elements, ascending: the ranks from which copies of its image borrow.
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<int>> lenders_of(
    const DeviceMesh& mesh, std::span<const TensorSpec> tensors, const FailureDomains& domains,
    DomainLevel level = DomainLevel::kHost);

}  // namespace meshstage
