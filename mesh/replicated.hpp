#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/layout.hpp>

/// What the mesh already replicates: a tensor that is Replicate along a mesh dimension is on all
/// ranks of that dimension's groups, in training memory and in their own images. Pure functions of
/// mesh and placements, so that all ranks come to the same answer.
namespace meshstage {

/// A tensor on a mesh, as far as planning needs it.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  Placements placements;
  std::string dtype = "f32";
  std::int64_t element_bytes = 4;
};

/// Bytes of one element: bool, u8, i8, i16, i32, i64, f16, bf16, f32, f64, c64, c128. Throws
/// InvalidArgument that lists them.
[[nodiscard]] MESHSTAGE_API std::int64_t element_bytes_of(std::string_view dtype);
/// "NAME=DTYPE[SIZES]:PLACEMENTS", such as "w=f32[1024,512]:S(0),R". Throws InvalidArgument.
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
/// differ along Replicate dimensions alone. False where one is not on the mesh. What a holder has
/// like this it need not be sent (CheckpointerOptions::twins); it keeps a whole copy all the same.
/// Throws InvalidArgument unless there is one placement for each dimension.
[[nodiscard]] MESHSTAGE_API bool same_shard(const DeviceMesh& mesh,
                                            std::span<const Placement> placements, int a, int b);

}  // namespace meshstage
