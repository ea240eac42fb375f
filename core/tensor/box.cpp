#include <meshstage/core/tensor/box.hpp>

#include <algorithm>

namespace meshstage {

bool Box::empty() const noexcept { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }

std::int64_t Box::numel() const noexcept {
  std::int64_t n = 1;
  for (const std::int64_t s : shape) n *= s;
  return n;
}

Box intersection(const Box& a, const Box& b) {
  Box both;
  both.shape.resize(a.shape.size());
  both.offset.resize(a.shape.size());
  for (std::size_t d = 0; d < a.shape.size(); ++d) {
    const std::int64_t begin = std::max(a.offset[d], b.offset[d]);
    const std::int64_t end = std::min(a.offset[d] + a.shape[d], b.offset[d] + b.shape[d]);
    both.offset[d] = begin;
    both.shape[d] = std::max<std::int64_t>(end - begin, 0);
  }
  return both;
}

bool contains(const Box& outer, const Box& inner) {
  return intersection(outer, inner).shape == inner.shape;
}

std::vector<Box> without(const Box& box, const Box& hole) {
  if (box.empty()) return {};
  const Box both = intersection(box, hole);
  if (both.empty()) return {box};
  std::vector<Box> rest;
  Box left = box;  // shrinks to what both have, one dimension after the other
  for (std::size_t d = 0; d < box.shape.size(); ++d) {
    const std::int64_t end = left.offset[d] + left.shape[d];
    const std::int64_t hole_end = both.offset[d] + both.shape[d];
    if (left.offset[d] < both.offset[d]) {
      rest.push_back(left);
      rest.back().shape[d] = both.offset[d] - left.offset[d];
    }
    if (hole_end < end) {
      rest.push_back(left);
      rest.back().offset[d] = hole_end;
      rest.back().shape[d] = end - hole_end;
    }
    left.offset[d] = both.offset[d];
    left.shape[d] = both.shape[d];
  }
  return rest;
}

Tensor view_of(const Tensor& tensor, const Box& held, const Box& wanted) {
  Tensor view = tensor;
  for (std::size_t d = 0; d < wanted.shape.size(); ++d) {
    if (wanted.shape[d] == held.shape[d]) continue;
    // An empty box has no place; any will do.
    const std::int64_t start = wanted.empty() ? 0 : wanted.offset[d] - held.offset[d];
    view = view.narrow(static_cast<std::int64_t>(d), start, wanted.shape[d]);
  }
  return view;
}

}  // namespace meshstage
