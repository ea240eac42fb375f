#include "sharded.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/sharded/node.hpp>

#include "placed_tensor.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

using Numbers = std::vector<std::int64_t>;

/// How a tensor of a dtype and shape lies in shards on ranks, as this rank sees it. Made once for
/// all such tensors. Devices are not part of it: a shard may come back to another device.
class ShardedLayout {
 public:
  /// `shards` are offsets, sizes and rank of each shard of the whole.
  ShardedLayout(Shape shape, const std::string& dtype,
                const std::vector<std::tuple<Numbers, Numbers, int>>& shards, int rank) {
    const auto found = dtype_from_string(dtype);
    if (!found) throw InvalidArgument("no dtype is called " + dtype);
    ShardedTensorMetadata metadata{std::move(shape), *found, {}};
    const Storage one = Storage::allocate(size_of(*found));
    std::vector<Tensor> none;  // one element in place of all: nobody reads it
    for (const auto& [offsets, sizes, owner] : shards) {
      metadata.shards.push_back({offsets, sizes, {owner, kCpu}});
      if (owner == rank) {
        none.push_back(Tensor::on_storage(one, *found, sizes, Strides(sizes.size(), 0)));
      }
    }
    first_ = std::make_shared<sharded::ShardedTensorNode>(
        ShardedTensor::from_metadata(std::move(none), std::move(metadata), rank));
  }
  /// Throws InvalidArgument if `tensors` are not this rank's shards of such a tensor, in the order
  /// of the whole's shards.
  [[nodiscard]] PlacedTensor of(const std::vector<Tensor>& tensors) const {
    return {first_->rebuild({tensors.begin(), tensors.end()})};
  }

 private:
  NodePtr first_;
};

}  // namespace

void bind_sharded(nb::module_& module) {
  nb::class_<ShardedLayout>(module, "ShardedLayout")
      .def(nb::init<Shape, const std::string&,
                    const std::vector<std::tuple<Numbers, Numbers, int>>&, int>(),
           nb::arg("shape"), nb::arg("dtype"), nb::arg("shards"), nb::arg("rank"))
      .def("of", &ShardedLayout::of, nb::arg("tensors"));
}

}  // namespace meshstage::python
