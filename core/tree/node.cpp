#include <meshstage/core/tree/node.hpp>

namespace meshstage {

NodePtr OpaqueNode::rebuild(std::vector<Value> children) const {
  auto copy = std::make_shared<OpaqueNode>(*this);
  copy->assign(children);
  return copy;
}

bool OpaqueNode::assign(const std::vector<Value>& children) {
  if (children.size() != children_.size()) {
    throw InvalidArgument("a node " + type_name_ + " has " + std::to_string(children_.size()) +
                          " children, not " + std::to_string(children.size()));
  }
  for (std::size_t i = 0; i < children.size(); ++i) children_[i].value = children[i];
  return true;
}

void NodeRegistry::add(const std::string& type_name, Decoder decoder) {
  if (!decoder) throw InvalidArgument("the decoder of node type \"" + type_name + "\" is empty");
  if (!decoders_.try_emplace(type_name, std::move(decoder)).second) {
    throw InvalidArgument("node type \"" + type_name + "\" is registered already");
  }
}

bool NodeRegistry::contains(std::string_view type_name) const {
  return decoders_.find(type_name) != decoders_.end();
}

NodePtr NodeRegistry::make(const std::string& type_name, std::vector<Node::Child> children,
                           Value auxiliary) const {
  const auto it = decoders_.find(type_name);
  if (it == decoders_.end()) {
    return std::make_shared<OpaqueNode>(type_name, std::move(children), std::move(auxiliary));
  }
  auto node = it->second(std::move(children), auxiliary);
  if (!node) throw CorruptData("the decoder of node type \"" + type_name + "\" made nothing");
  return node;
}

}  // namespace meshstage
