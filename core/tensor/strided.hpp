#pragma once
#include <cstdint>

#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage::detail {

/// The innermost dimensions whose elements are neighbours under both sets of strides.
struct RunLength {
  std::int64_t elements = 1;
  std::size_t outer = 0;  ///< The number of dimensions outside of a run.
};
inline RunLength run_length(const Shape& shape, const Strides& a, const Strides& b) {
  RunLength run{1, shape.size()};
  while (run.outer > 0 && (shape[run.outer - 1] == 1 || (a[run.outer - 1] == run.elements &&
                                                         b[run.outer - 1] == run.elements))) {
    run.elements *= shape[--run.outer];
  }
  return run;
}

/// Calls f(i, j, n) for the runs of n elements that are neighbours under both sets of strides, in
/// row-major order, with the element offsets of each run's begin, until f returns false; then
/// returns false. The shape must not contain 0.
template <class F>
bool for_each_run_pair(const Shape& shape, const Strides& a, const Strides& b, F&& f) {
  const auto [run, outer] = run_length(shape, a, b);
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
