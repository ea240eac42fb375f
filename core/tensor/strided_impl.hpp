#pragma once
#include <cstdint>

#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage::detail {

/// Calls f(i, j) for each element of a shape in row-major order, with the element offsets under two
/// sets of strides, until f returns false; then returns false. The shape must not contain 0.
template <class F>
bool for_each_pair(const Shape& shape, const Strides& a, const Strides& b, F&& f) {
  Shape index(shape.size(), 0);
  std::int64_t i = 0;
  std::int64_t j = 0;
  for (;;) {
    if (!f(i, j)) return false;
    std::size_t d = shape.size();
    for (;;) {
      if (d == 0) return true;
      --d;
      if (++index[d] < shape[d]) break;
      index[d] = 0;
      i -= a[d] * (shape[d] - 1);
      j -= b[d] * (shape[d] - 1);
    }
    i += a[d];
    j += b[d];
  }
}

}  // namespace meshstage::detail
