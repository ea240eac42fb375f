// The views of a tensor: new shapes, strides and offsets on the same storage.
#include <algorithm>

#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage {

std::size_t Tensor::check_dim(std::int64_t dim, const char* call) const {
  const auto n = static_cast<std::int64_t>(shape().size());
  const std::int64_t d = dim < 0 ? dim + n : dim;
  if (d < 0 || d >= n) {
    throw InvalidArgument(std::string(call) + ": no dim " + std::to_string(dim) + " in " +
                          describe());
  }
  return static_cast<std::size_t>(d);
}

Tensor Tensor::view(Shape shape) const {
  check_contiguous("view");
  const auto hole = std::find(shape.begin(), shape.end(), -1);
  if (hole != shape.end()) {
    *hole = 1;
    const auto rest = element_count(shape);
    if (rest == 0 || numel() % rest != 0) {
      *hole = -1;
      throw InvalidArgument("view: " + describe() + " does not fit " + to_string(shape));
    }
    *hole = numel() / rest;
  }
  if (element_count(shape) != numel()) {
    throw InvalidArgument("view: " + describe() + " has " + std::to_string(numel()) +
                          " elements, " + to_string(shape) + " has another number");
  }
  auto strides = contiguous_strides(shape);
  return on_storage(storage(), dtype(), std::move(shape), std::move(strides), storage_offset());
}

Tensor Tensor::reshape(Shape shape) const { return contiguous().view(std::move(shape)); }

Tensor Tensor::slice(std::int64_t dim, std::int64_t start, std::int64_t stop,
                     std::int64_t step) const {
  const auto d = check_dim(dim, "slice");
  if (start < 0 || stop < start || stop > shape()[d] || step < 1) {
    throw InvalidArgument("slice: [" + std::to_string(start) + ", " + std::to_string(stop) +
                          ") by " + std::to_string(step) + " along dim " + std::to_string(dim) +
                          " of " + describe());
  }
  Shape to = shape();
  Strides by = strides();
  to[d] = stop == start ? 0 : (stop - start - 1) / step + 1;
  // Past the end of an empty dim the offset would lie outside; an empty view has none to keep.
  const std::int64_t offset = storage_offset() + (to[d] == 0 ? 0 : start * by[d]);
  if (to[d] > 1) by[d] *= step;
  return on_storage(storage(), dtype(), std::move(to), std::move(by), offset);
}

Tensor Tensor::narrow(std::int64_t dim, std::int64_t start, std::int64_t length) const {
  const auto d = check_dim(dim, "narrow");
  if (start < 0 || length < 0 || start > shape()[d] || length > shape()[d] - start) {
    throw InvalidArgument("narrow: " + std::to_string(length) + " from " + std::to_string(start) +
                          " along dim " + std::to_string(dim) + " of " + describe());
  }
  return slice(dim, start, start + length);
}

Tensor Tensor::select(std::int64_t dim, std::int64_t index) const {
  const auto d = check_dim(dim, "select");
  const Tensor one = narrow(dim, index, 1);
  Shape to = one.shape();
  Strides by = one.strides();
  to.erase(to.begin() + static_cast<std::ptrdiff_t>(d));
  by.erase(by.begin() + static_cast<std::ptrdiff_t>(d));
  return on_storage(storage(), dtype(), std::move(to), std::move(by), one.storage_offset());
}

Tensor Tensor::transpose(std::int64_t dim0, std::int64_t dim1) const {
  const auto a = check_dim(dim0, "transpose");
  const auto b = check_dim(dim1, "transpose");
  Shape to = shape();
  Strides by = strides();
  std::swap(to[a], to[b]);
  std::swap(by[a], by[b]);
  return on_storage(storage(), dtype(), std::move(to), std::move(by), storage_offset());
}

Tensor Tensor::expand(const Shape& to) const {
  const auto refuse = [&] {
    throw InvalidArgument("expand: " + describe() + " to " + to_string(to));
  };
  if (to.size() < dim()) refuse();
  const std::size_t extra = to.size() - dim();
  Strides by(to.size(), 0);
  for (std::size_t d = extra; d < to.size(); ++d) {
    const auto have = shape()[d - extra];
    if (to[d] == have)
      by[d] = strides()[d - extra];
    else if (have != 1)
      refuse();
  }
  return on_storage(storage(), dtype(), to, std::move(by), storage_offset());
}

Tensor Tensor::as_strided(Shape shape, Strides strides, std::int64_t offset) const {
  return on_storage(storage(), dtype(), std::move(shape), std::move(strides), offset);
}

}  // namespace meshstage
