#pragma once
#include <cstdint>

#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage::detail {

/// Calls f(i, j, n) for the runs of n elements that are neighbours under both sets of strides, in
/// row-major order, with the element offsets of each run's begin, until f returns false; then
/// returns false. The shape must not contain 0.
template <class F>
bool for_each_run_pair(const Shape& shape, const Strides& a, const Strides& b, F&& f) {
  std::int64_t run = 1;
  std::size_t outer = shape.size();
  while (outer > 0 && (shape[outer - 1] == 1 || (a[outer - 1] == run && b[outer - 1] == run))) {
    run *= shape[--outer];
  }
  Shape index(outer, 0);
  std::int64_t i = 0;
  std::int64_t j = 0;
  for (;;) {
    if (!f(i, j, run)) return false;
    std::size_t d = outer;
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
