#include <meshstage/core/tree/boxes.hpp>

#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage {

void BoxReaders::add(const std::string& type_name, Reader reader) {
  if (!reader) throw InvalidArgument("the box reader of node type \"" + type_name + "\" is empty");
  if (!readers_.try_emplace(type_name, std::move(reader)).second) {
    throw InvalidArgument("node type \"" + type_name + "\" has a box reader already");
  }
}

bool BoxReaders::contains(std::string_view type_name) const {
  return readers_.find(type_name) != readers_.end();
}

std::optional<TensorBoxes> BoxReaders::read(const Node& node) const {
  const auto it = readers_.find(node.type_name());
  if (it == readers_.end()) return std::nullopt;
  TensorBoxes read = it->second(node.children(), node.auxiliary());
  (void)element_count(read.shape);
  for (const TensorBox& box : read.boxes) {
    const Shape& size = box.tensor.shape();
    bool within = box.tensor.dtype() == read.dtype && size.size() == read.shape.size() &&
                  box.offset.size() == read.shape.size();
    for (std::size_t d = 0; within && d < size.size(); ++d) {
      within = box.offset[d] >= 0 && size[d] <= read.shape[d] - box.offset[d];
    }
    if (within) continue;
    throw CorruptData("a node " + it->first + " has a box " + box.tensor.describe() + " at " +
                      to_string(box.offset) + ", which is no part of " +
                      std::string(to_string(read.dtype)) + to_string(read.shape));
  }
  return read;
}

}  // namespace meshstage
