#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage::tools {

/// What differs between the elements of two CPU tensors of one dtype and shape.
struct ElementDifference {
  std::int64_t count = 0;   ///< Elements whose bits differ.
  std::string index;        ///< Of the first one: "[3, 7]".
  std::string left, right;  ///< Its values: "0.5", "NaN", "true".
  /// The largest difference of two values that are numbers; NaN if there is none (complex numbers
  /// have none here).
  double largest = 0;
};
ElementDifference compare_elements(const Tensor& a, const Tensor& b);

}  // namespace meshstage::tools
