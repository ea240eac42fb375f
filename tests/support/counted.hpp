#pragma once
#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage::test {

/// The element at row-major place i is from + i.
inline Tensor counted(const Shape& shape, float from = 0) {
  Tensor t = Tensor::arange<float>(element_count(shape)).view(shape);
  for (float& x : t.span<float>()) x += from;
  return t;
}

}  // namespace meshstage::test
