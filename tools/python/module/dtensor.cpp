#include "dtensor.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/dtensor/node.hpp>

#include "placed_tensor.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

/// How tensors of a dtype and shape lie on a mesh, as this rank sees it. Made once for all of them.
class DTensorLayout {
 public:
  DTensorLayout(std::vector<int> ranks, std::vector<std::int64_t> mesh_shape,
                std::vector<std::string> mesh_names, const std::string& placements,
                const std::string& dtype, Shape shape, int rank) {
    const auto found = dtype_from_string(dtype);
    if (!found) throw InvalidArgument("no dtype is called " + dtype);
    auto mesh =
        DeviceMesh::from_ranks(std::move(ranks), std::move(mesh_shape), std::move(mesh_names));
    const auto placed = parse_placements(placements);
    const Shape local = local_shard(mesh, rank, shape, placed).shape;
    auto strides = contiguous_strides(shape);
    // One element in place of all: nobody reads it.
    const Tensor none = Tensor::on_storage(Storage::allocate(size_of(*found)), *found, local,
                                           Strides(local.size(), 0));
    first_ = std::make_shared<dtensor::DTensorNode>(DTensor::from_spec(
        none, {std::move(mesh), placed, *found, std::move(shape), std::move(strides)}, rank));
  }
  /// Throws InvalidArgument if `local` is not what this rank has of such a tensor.
  [[nodiscard]] PlacedTensor of(const Tensor& local) const { return {first_->rebuild({local})}; }

 private:
  NodePtr first_;
};

PlacedTensor unplaced(const Tensor& local, const std::string& placements) {
  return {std::make_shared<OpaqueNode>(kUnplacedType, std::vector<Node::Child>{{"local", local}},
                                       Value(placements))};
}

}  // namespace

void bind_dtensor(nb::module_& module) {
  nb::class_<PlacedTensor>(module, "PlacedTensor");
  nb::class_<DTensorLayout>(module, "DTensorLayout")
      .def(nb::init<std::vector<int>, std::vector<std::int64_t>, std::vector<std::string>,
                    const std::string&, const std::string&, Shape, int>(),
           nb::arg("ranks"), nb::arg("mesh_shape"), nb::arg("mesh_names"), nb::arg("placements"),
           nb::arg("dtype"), nb::arg("shape"), nb::arg("rank"))
      .def("of", &DTensorLayout::of, nb::arg("local"));
  module.def("unplaced_dtensor", &unplaced, nb::arg("local"), nb::arg("placements"));
}

}  // namespace meshstage::python
