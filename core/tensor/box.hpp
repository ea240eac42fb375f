#pragma once
#include <cstdint>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage {

/// A box of a tensor: `shape` elements, whose first lies at `offset` in the whole tensor.
struct MESHSTAGE_API Box {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> offset;
  [[nodiscard]] bool empty() const noexcept;
  /// Elements; 1 for a tensor without dimensions.
  [[nodiscard]] std::int64_t numel() const noexcept;
  friend bool operator==(const Box&, const Box&) = default;
};

/// The elements that both boxes have; a box with a size 0 if there are none. Both have equally many
/// dimensions.
[[nodiscard]] MESHSTAGE_API Box intersection(const Box& a, const Box& b);
/// True if `inner` lies within `outer`, so that view_of() can make a view of it.
[[nodiscard]] MESHSTAGE_API bool contains(const Box& outer, const Box& inner);
/// The elements of `box` that are not in `hole`: disjoint boxes, at most two for each dimension.
[[nodiscard]] MESHSTAGE_API std::vector<Box> without(const Box& box, const Box& hole);
/// A view of the box `wanted` in a tensor that has the box `held`. `wanted` must lie within `held`.
[[nodiscard]] MESHSTAGE_API Tensor view_of(const Tensor& tensor, const Box& held,
                                           const Box& wanted);

}  // namespace meshstage
