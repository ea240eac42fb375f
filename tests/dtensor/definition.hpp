// What placements mean, said once more without any communication: the whole tensor of the local
// tensors of all ranks. Elements are whole numbers in doubles, small enough for exact arithmetic.
#pragma once
#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/layout.hpp>

namespace meshstage::test {

inline double reduce_by_definition(ReduceOp op, const std::vector<double>& values) {
  double result = values.front();
  for (std::size_t i = 1; i < values.size(); ++i) {
    switch (op) {
      case ReduceOp::kSum:
      case ReduceOp::kAvg:
        result += values[i];
        break;
      case ReduceOp::kProduct:
        result *= values[i];
        break;
      case ReduceOp::kMin:
        result = std::min(result, values[i]);
        break;
      case ReduceOp::kMax:
        result = std::max(result, values[i]);
        break;
    }
  }
  return op == ReduceOp::kAvg ? result / static_cast<double>(values.size()) : result;
}

/// Reduces what is at the coordinates of a mesh to one value, along partial dimensions, the first
/// first. Elsewhere only the coordinate 0 is there.
inline double reduce_mesh(const DeviceMesh& mesh, const Placements& placements,
                          std::map<std::vector<std::int64_t>, double> values) {
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    std::map<std::vector<std::int64_t>, std::vector<double>> lines;
    for (const auto& [at, value] : values) {
      auto line = at;
      line[d] = 0;
      lines[line].push_back(value);
    }
    values.clear();
    for (const auto& [line, all] : lines) {
      values[line] =
          placements[d].is_partial() ? reduce_by_definition(placements[d].op(), all) : all.front();
    }
  }
  return values.begin()->second;
}

/// The whole tensor's elements in row-major order; nothing if replicas differ, an element is
/// nobody's or a local tensor has another shape than the layout gives it. `locals` by place in the
/// mesh.
inline std::optional<std::vector<double>> whole_by_definition(const DeviceMesh& mesh,
                                                              const Shape& shape,
                                                              const Placements& placements,
                                                              const std::vector<Tensor>& locals) {
  const Layout layout(mesh.shape(), shape, placements);
  const auto strides = contiguous_strides(shape);
  using Contributions = std::map<std::vector<std::int64_t>, double>;
  // Of each element, by the coordinates along partial dimensions; elsewhere 0.
  std::vector<Contributions> elements(static_cast<std::size_t>(layout.numel()));
  for (std::int64_t i = 0; i < mesh.size(); ++i) {
    const auto at = *mesh.coordinate(mesh.rank_at(i));
    const auto part = layout.at(at);
    const Tensor& local = locals[static_cast<std::size_t>(i)];
    if (local.shape() != part.shape) return {};
    auto key = at;
    for (std::size_t d = 0; d < key.size(); ++d) {
      if (!placements[d].is_partial()) key[d] = 0;
    }
    const auto values = local.to_vector<double>();
    const auto inner = contiguous_strides(part.shape);
    for (std::int64_t e = 0; e < local.numel(); ++e) {
      std::int64_t place = 0;
      for (std::size_t t = 0; t < shape.size(); ++t) {
        place += (part.offset[t] + e / inner[t] % part.shape[t]) * strides[t];
      }
      const double value = values[static_cast<std::size_t>(e)];
      const auto [it, added] = elements[static_cast<std::size_t>(place)].emplace(key, value);
      if (!added && it->second != value) return {};
    }
  }
  std::vector<double> whole;
  for (const auto& contributions : elements) {
    if (contributions.empty()) return {};
    whole.push_back(reduce_mesh(mesh, placements, contributions));
  }
  return whole;
}

}  // namespace meshstage::test
