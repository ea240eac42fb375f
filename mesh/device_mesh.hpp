#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// All groups of one mesh dimension. `groups[i]` has the ranks that differ only along this
/// dimension, in order.
struct MeshDimGroups {
  std::string name;
  std::vector<std::vector<int>> groups;
};

/// The ranks of a job arranged in an array of N named dimensions, like PyTorch's DeviceMesh. It
/// gives the coordinate of a rank and the ranks of its groups; MeshGroups makes process groups of
/// these.
///
/// An immutable value, cheap to copy. Threads: any. If every rank is offset + sum(coordinate *
/// stride), the mesh stores only sizes and strides, however it was made; only a mesh in irregular
/// order stores its ranks.
///
/// Dimensions have distinct names of letters, digits and `_-.`; the default names are "dim0",
/// "dim1", ... Every function that takes a dimension's name throws InvalidArgument for an unknown
/// one; the message lists the names.
class MESHSTAGE_API DeviceMesh {
 public:
  /// Ranks first_rank, first_rank + 1, ... in row-major order. Throws InvalidArgument for no
  /// dimensions, a size below 1, more ranks than an int counts, or wrong names.
  [[nodiscard]] static DeviceMesh from_shape(std::vector<std::int64_t> shape,
                                             std::vector<std::string> names = {},
                                             int first_rank = 0);
  /// These ranks in row-major order. Throws InvalidArgument also if their number is not that of the
  /// shape, or if a rank is negative or repeated.
  [[nodiscard]] static DeviceMesh from_ranks(std::vector<int> ranks,
                                             std::vector<std::int64_t> shape,
                                             std::vector<std::string> names = {});
  /// The mesh whose dimensions have exactly these groups: a rank's coordinate is its place in its
  /// group of each dimension. One dimension needs one group. Throws InvalidArgument if the groups
  /// do not form a mesh; the message names a rank.
  [[nodiscard]] static DeviceMesh from_groups(std::span<const MeshDimGroups> dims);

  [[nodiscard]] std::size_t ndim() const noexcept { return shape_.size(); }
  /// Number of ranks.
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] std::int64_t size(std::string_view name) const { return shape_[dim(name)]; }
  [[nodiscard]] const std::vector<std::int64_t>& shape() const noexcept { return shape_; }
  [[nodiscard]] const std::vector<std::string>& names() const noexcept { return names_; }
  /// Index of the dimension of this name.
  [[nodiscard]] std::size_t dim(std::string_view name) const;

  [[nodiscard]] bool contains(int rank) const noexcept { return index_of(rank).has_value(); }
  /// The rank at a place in row-major order, or at a coordinate. Throws InvalidArgument for a place
  /// outside the mesh.
  [[nodiscard]] int rank_at(std::int64_t index) const;
  [[nodiscard]] int rank_at(std::span<const std::int64_t> coordinate) const;
  /// Place of a rank in row-major order; nothing if the mesh has no such rank.
  [[nodiscard]] std::optional<std::int64_t> index_of(int rank) const noexcept;
  [[nodiscard]] std::optional<std::vector<std::int64_t>> coordinate(int rank) const;
  /// The rank's coordinate along one dimension, which is its number in the group of that
  /// dimension. Throws InvalidArgument if the mesh has no such rank.
  [[nodiscard]] int local_rank(int rank, std::string_view name) const;
  /// All ranks in row-major order.
  [[nodiscard]] std::vector<int> ranks() const;

  /// The part of the mesh with these dimensions, in this order, that contains `rank`; the other
  /// coordinates are those of `rank`. Each name may be given once.
  [[nodiscard]] DeviceMesh slice(std::span<const std::string> names, int rank) const;
  [[nodiscard]] DeviceMesh slice(std::string_view name, int rank) const;
  /// All slices with these dimensions, one for each combination of the other coordinates, in
  /// row-major order.
  [[nodiscard]] std::vector<DeviceMesh> slices(std::span<const std::string> names) const;
  /// The part of the mesh at this coordinate of one dimension. The dimension stays, with size 1.
  /// Throws InvalidArgument if the dimension is shorter.
  [[nodiscard]] DeviceMesh at(std::string_view name, std::int64_t coordinate) const;
  /// Ranks of the group of `rank` along a dimension, in order.
  [[nodiscard]] std::vector<int> group(int rank, std::string_view name) const;
  /// All groups of a dimension.
  [[nodiscard]] MeshDimGroups groups(std::string_view name) const;

  /// A mesh with one dimension that has all ranks in row-major order. If `name` is empty, it is the
  /// dimensions' names joined with '_'.
  [[nodiscard]] DeviceMesh flatten(std::string name = {}) const;
  /// A mesh in which these neighbouring dimensions, given in the mesh's order, are one dimension in
  /// their place.
  [[nodiscard]] DeviceMesh flatten(std::span<const std::string> names, std::string name = {}) const;
  /// A mesh in which one dimension is several; the product of `sizes` must be the dimension's size.
  [[nodiscard]] DeviceMesh unflatten(std::string_view name, std::vector<std::int64_t> sizes,
                                     std::vector<std::string> names) const;

  /// True if shape, names and the rank at every place are equal.
  friend MESHSTAGE_API bool operator==(const DeviceMesh& a, const DeviceMesh& b) noexcept;
  /// Equal meshes have equal hashes, in every process and run.
  [[nodiscard]] std::uint64_t hash() const noexcept;
  /// "DeviceMesh(dp=2, tp=4; ranks 0..7)"; an irregular order lists its first ranks.
  [[nodiscard]] std::string to_string() const;

  /// True if the mesh stores only sizes and strides.
  [[nodiscard]] bool is_strided() const noexcept { return order_ == nullptr; }

 private:
  struct Order;  // ranks of an irregular mesh in row-major order, and the way back
  DeviceMesh() = default;
  static DeviceMesh make(std::vector<std::int64_t> shape, std::vector<std::string> names);
  void set_strides(std::int64_t offset, std::vector<std::int64_t> strides);
  [[nodiscard]] DeviceMesh with_shape(std::vector<std::int64_t> shape,
                                      std::vector<std::string> names) const;
  [[nodiscard]] std::vector<std::size_t> dims(std::span<const std::string> names) const;
  [[nodiscard]] DeviceMesh slice_at(std::span<const std::size_t> dims, std::int64_t base) const;
  [[nodiscard]] int unchecked_rank(std::int64_t index) const noexcept;
  [[nodiscard]] std::int64_t require_index(int rank) const;

  std::vector<std::int64_t> shape_;
  std::vector<std::string> names_;
  std::int64_t size_ = 1;
  std::int64_t offset_ = 0;             // strided: the rank at coordinate 0
  std::vector<std::int64_t> strides_;   // strided: in ranks; 0 for a dimension of size 1
  std::vector<std::size_t> by_stride_;  // strided: dimensions, largest stride first
  std::shared_ptr<const Order> order_;
};

MESHSTAGE_API std::ostream& operator<<(std::ostream& out, const DeviceMesh& mesh);

}  // namespace meshstage

template <>
struct std::hash<meshstage::DeviceMesh> {
  std::size_t operator()(const meshstage::DeviceMesh& mesh) const noexcept {
    return static_cast<std::size_t>(mesh.hash());
  }
};
