#pragma once
#include <cstddef>
#include <optional>
#include <span>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage::dtensor {

/// The element type by which the collectives reduce this dtype; nothing if they cannot.
[[nodiscard]] std::optional<collectives::Element> element_of(DType dtype) noexcept;

/// Calls f(bytes) for each run of neighbouring elements of a CPU tensor of any strides. The runs
/// together are the tensor's elements in row-major order.
template <class F>
void for_each_run(const Tensor& tensor, F&& f) {
  if (tensor.numel() == 0) return;
  const std::size_t element = size_of(tensor.dtype());
  std::int64_t run = 1;
  std::size_t outer = tensor.dim();
  while (outer > 0 && (tensor.size(outer - 1) == 1 || tensor.strides()[outer - 1] == run)) {
    run *= tensor.size(--outer);
  }
  Shape at(outer, 0);
  std::int64_t offset = 0;
  for (;;) {
    f(std::span<std::byte>(tensor.first_byte() + static_cast<std::size_t>(offset) * element,
                           static_cast<std::size_t>(run) * element));
    std::size_t d = outer;
    for (;;) {
      if (d == 0) return;
      --d;
      offset += tensor.strides()[d];
      if (++at[d] < tensor.size(d)) break;
      offset -= tensor.strides()[d] * at[d];
      at[d] = 0;
    }
  }
}

}  // namespace meshstage::dtensor
