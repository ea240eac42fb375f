// Meshes, shapes, placements and tensors out of a seed.
#pragma once
#include <algorithm>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/layout.hpp>

namespace meshstage::test {

/// Meshes, shapes and placements out of a seed; the same on every machine.
class Chance {
 public:
  explicit Chance(std::uint32_t seed) : engine_(seed) {}
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint32_t>(n));
  }
  std::int64_t between(std::int64_t a, std::int64_t b) { return a + below(b - a + 1); }

  DeviceMesh mesh(std::int64_t most_ranks) {
    std::vector<std::int64_t> shape;
    std::int64_t size = 1;
    for (std::int64_t dims = between(1, 3); dims > 0; --dims) {
      shape.push_back(
          between(1, std::max<std::int64_t>(1, std::min<std::int64_t>(6, most_ranks / size))));
      size *= shape.back();
    }
    if (below(2) == 0) return DeviceMesh::from_shape(shape);
    std::vector<int> ranks;
    for (int r = 0; r < size; ++r) ranks.push_back(r);
    for (std::size_t i = ranks.size(); i > 1; --i) {
      std::swap(ranks[i - 1], ranks[static_cast<std::size_t>(below(static_cast<int>(i)))]);
    }
    return DeviceMesh::from_ranks(ranks, shape);
  }
  Shape shape() {
    Shape shape;
    for (std::int64_t dims = between(0, 3); dims > 0; --dims) {
      shape.push_back(below(12) == 0 ? 0 : between(1, 9));
    }
    return shape;
  }
  Placement placement(std::size_t tensor_dims) {
    const auto kind = below(5);
    if (kind <= 1 && tensor_dims > 0) {
      return Placement::shard(static_cast<int>(below(static_cast<int>(tensor_dims))));
    }
    return kind <= 2 ? Placement::replicate() : Placement::partial(static_cast<ReduceOp>(below(5)));
  }
  Placements placements(std::size_t mesh_dims, std::size_t tensor_dims) {
    Placements p;
    for (std::size_t d = 0; d < mesh_dims; ++d) p.push_back(placement(tensor_dims));
    return p;
  }

 private:
  std::mt19937 engine_;
};

/// A random tensor as the ranks have it under some placements: by place in the mesh.
inline std::vector<Tensor> random_locals(Chance& chance, const DeviceMesh& mesh, const Shape& shape,
                                         const Placements& placements) {
  // Means of sums stay whole if every contribution is a multiple of every number divided by.
  double multiple = 1;
  bool products = false;  // of 0 and negative numbers are -0, and which zero is the least is open
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    if (placements[d].is_partial() && placements[d].op() == ReduceOp::kAvg) {
      multiple *= static_cast<double>(mesh.shape()[d]);
    }
    products = products || placements[d] == Placement::partial(ReduceOp::kProduct);
  }
  const Layout layout(mesh.shape(), shape, placements);
  std::map<std::vector<std::int64_t>, Tensor> wholes;  // by coordinate along partial dimensions
  std::vector<Tensor> locals;
  for (std::int64_t i = 0; i < mesh.size(); ++i) {
    const auto at = *mesh.coordinate(mesh.rank_at(i));
    auto key = at;
    for (std::size_t d = 0; d < key.size(); ++d) {
      if (!placements[d].is_partial()) key[d] = 0;
    }
    auto [it, added] = wholes.try_emplace(key);
    if (added) {
      it->second = Tensor::empty(shape, DType::kF64);
      for (double& x : it->second.span<double>()) {
        x = multiple * static_cast<double>(chance.between(-2, 2));
        if (x == 0 && products) x = multiple;
      }
    }
    Tensor local = it->second;
    const auto part = layout.at(at);
    for (std::size_t t = 0; t < shape.size(); ++t) {
      const bool empty = part.shape[t] == 0;
      local = local.narrow(static_cast<std::int64_t>(t), empty ? 0 : part.offset[t], part.shape[t]);
    }
    locals.push_back(local.contiguous());
  }
  return locals;
}

}  // namespace meshstage::test
