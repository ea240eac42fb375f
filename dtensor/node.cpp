#include <meshstage/dtensor/node.hpp>

#include <algorithm>
#include <bit>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/spec_impl.hpp>

namespace meshstage::dtensor {
namespace {

constexpr const char* kTypeName = "dtensor";
constexpr const char* kLocal = "local";

List list_of(const std::vector<std::int64_t>& numbers) {
  List list;
  for (const std::int64_t n : numbers) list.push_back(n);
  return list;
}

List list_of(const std::vector<std::string>& texts) {
  List list;
  for (const auto& t : texts) list.push_back(t);
  return list;
}

Value auxiliary_of(const DTensor& tensor) {
  const DTensorSpec& spec = tensor.spec();
  return Dict{{"mesh", Dict{{"shape", list_of(spec.mesh.shape())},
                            {"names", list_of(spec.mesh.names())},
                            {"hash", std::bit_cast<std::int64_t>(spec.mesh.hash())}}},
              {"rank", tensor.rank()},
              {"coordinate", list_of(require_coordinate(spec.mesh, tensor.rank()))},
              {"placements", meshstage::to_string(spec.placements)},
              {"shape", list_of(spec.shape)},
              {"stride", list_of(spec.stride)}};
}

std::vector<std::int64_t> numbers_of(const Value& value) {
  std::vector<std::int64_t> numbers;
  for (const Value& v : value.as<List>()) numbers.push_back(v.as<std::int64_t>());
  return numbers;
}

std::vector<std::string> texts_of(const Value& value) {
  std::vector<std::string> texts;
  for (const Value& v : value.as<List>()) texts.push_back(v.as<std::string>());
  return texts;
}

const Tensor& local_of(const std::vector<Node::Child>& children) {
  if (children.size() != 1 || children.front().name != kLocal) {
    throw CorruptData("it has " + std::to_string(children.size()) + " children, not the one \"" +
                      kLocal + "\"");
  }
  return children.front().value.as<Tensor>();
}

/// Throws anything that reading a wrong Value throws; the caller makes it CorruptData.
DTensor decoded(const std::vector<Node::Child>& children, const Value& auxiliary,
                const std::vector<DeviceMesh>& meshes) {
  const Tensor& tensor = local_of(children);
  const Value& mesh = auxiliary.at("mesh");
  const auto shape = numbers_of(mesh.at("shape"));
  const auto names = texts_of(mesh.at("names"));
  const auto hash = std::bit_cast<std::uint64_t>(mesh.at("hash")->as<std::int64_t>());
  const auto found = std::find_if(meshes.begin(), meshes.end(), [&](const DeviceMesh& known) {
    return known.shape() == shape && known.names() == names && known.hash() == hash;
  });
  if (found == meshes.end()) {
    std::string message = "a DTensor lies on mesh " + to_string(shape) + ", ";
    std::string known;
    bool like = false;
    for (const DeviceMesh& m : meshes) {
      known += (known.empty() ? "" : ", ") + m.to_string();
      like = like || (m.shape() == shape && m.names() == names);
    }
    throw StructureMismatch(message +
                            (like ? "with its ranks in another order than in " : "not on ") +
                            known + "; register the mesh it was made on");
  }
  DTensorSpec spec{*found, parse_placements(auxiliary.at("placements")->as<std::string>()),
                   tensor.dtype(), numbers_of(auxiliary.at("shape")),
                   numbers_of(auxiliary.at("stride"))};
  return DTensor::from_spec(tensor, std::move(spec), auxiliary.at("rank")->as<int>());
}

/// Throws anything that reading a wrong Value throws; the caller makes it CorruptData.
TensorBoxes boxes_of(const std::vector<Node::Child>& children, const Value& auxiliary) {
  const Tensor& local = local_of(children);
  const Value& mesh = auxiliary.at("mesh");
  const auto shape = numbers_of(mesh.at("shape"));
  TensorBoxes result;
  result.shape = numbers_of(auxiliary.at("shape"));
  result.dtype = local.dtype();
  result.group = std::bit_cast<std::uint64_t>(mesh.at("hash")->as<std::int64_t>());
  const Layout layout(shape, result.shape,
                      parse_placements(auxiliary.at("placements")->as<std::string>()));
  const Coordinate coordinate = numbers_of(auxiliary.at("coordinate"));
  LocalShard box = layout.at(coordinate);
  if (local.shape() != box.shape) {
    throw CorruptData("its local tensor is " + local.describe() + ", and its placements make " +
                      to_string(box.shape) + " of it");
  }
  for (std::size_t d = 0; d < shape.size(); ++d) {
    const Placement& placement = layout.placements()[d];
    if (placement.is_partial()) {
      throw StructureMismatch("it is placed as " + to_string(layout.placements()) +
                              ": a partial tensor is still to be reduced and cannot be cut; "
                              "redistribute() it before it is staged");
    }
    if (!placement.is_shard()) result.copy.push_back(coordinate[d]);
  }
  result.boxes.push_back({std::move(box.offset), local});
  return result;
}

}  // namespace

DTensorNode::DTensorNode(DTensor tensor)
    : tensor_(std::move(tensor)), auxiliary_(auxiliary_of(tensor_)) {}

DTensorNode::DTensorNode(DTensor tensor, Value auxiliary)
    : tensor_(std::move(tensor)), auxiliary_(std::move(auxiliary)) {}

std::string DTensorNode::type_name() const { return kTypeName; }

std::vector<Node::Child> DTensorNode::children() const { return {{kLocal, tensor_.to_local()}}; }

DTensor DTensorNode::with_children(const std::vector<Value>& children) const {
  if (children.size() != 1) {
    throw InvalidArgument("a DTensor has one child, its local tensor, not " +
                          std::to_string(children.size()));
  }
  return DTensor::from_spec(children.front().as<Tensor>(), tensor_.spec(), tensor_.rank());
}

NodePtr DTensorNode::rebuild(std::vector<Value> children) const {
  return std::shared_ptr<DTensorNode>(new DTensorNode(with_children(children), auxiliary_));
}

bool DTensorNode::assign(const std::vector<Value>& children) {
  tensor_ = with_children(children);
  return true;
}

Value to_value(DTensor tensor) { return std::make_shared<DTensorNode>(std::move(tensor)); }

DTensor from_value(const Value& value) {
  if (const auto* node = value.get_if<NodePtr>()) {
    if (const auto* tensor = dynamic_cast<const DTensorNode*>(node->get())) return tensor->tensor();
    throw InvalidArgument("this is a node of type \"" + (*node)->type_name() +
                          "\", not a DTensor; was the type registered where it was decoded?");
  }
  throw InvalidArgument("this is " + value.describe() + ", not a DTensor");
}

void register_nodes(NodeRegistry& registry, const DeviceMesh& mesh) {
  register_nodes(registry, std::vector<DeviceMesh>{mesh});
}

void register_nodes(NodeRegistry& registry, std::vector<DeviceMesh> meshes) {
  registry.add(
      kTypeName,
      [known = std::move(meshes)](const std::vector<Node::Child>& children,
                                  const Value& auxiliary) -> NodePtr {
        try {
          return std::make_shared<DTensorNode>(decoded(children, auxiliary, known));
        } catch (const StructureMismatch&) {
          throw;
        } catch (const Error& e) {
          throw CorruptData(std::string("the recorded parts of a DTensor do not fit together: ") +
                            e.what());
        }
      });
}

void register_boxes(BoxReaders& readers) {
  readers.add(kTypeName, [](const std::vector<Node::Child>& children, const Value& auxiliary) {
    try {
      return boxes_of(children, auxiliary);
    } catch (const StructureMismatch&) {
      throw;
    } catch (const Error& e) {
      throw CorruptData(std::string("what is recorded of a DTensor makes none: ") + e.what());
    }
  });
}

}  // namespace meshstage::dtensor
