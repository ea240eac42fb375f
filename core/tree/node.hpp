#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// Lets a type that is neither container nor tensor take part in a state dict: it has a name, child
/// Values, and plain data that describes it. Held by shared_ptr; a node that is held in two places
/// is one object after staging, too.
class MESHSTAGE_API Node {
 public:
  struct Child {
    std::string name;  ///< The child's part of the path; unique among the children.
    Value value;
  };
  virtual ~Node() = default;
  /// Names the type in images and in the registry: "dtensor", "myapp.Config".
  [[nodiscard]] virtual std::string type_name() const = 0;
  /// The children, whose number and names must not change while the structure does not. Called on
  /// the thread that calls stage().
  [[nodiscard]] virtual std::vector<Child> children() const = 0;
  /// Plain data (scalars in lists, tuples and dicts) that is part of the structure: a change of it
  /// makes a new plan. Data that changes from step to step belongs to the children.
  [[nodiscard]] virtual Value auxiliary() const { return {}; }
  /// A new node of this type with `children` in place of its own, in the same order.
  [[nodiscard]] virtual NodePtr rebuild(std::vector<Value> children) const = 0;
  /// Replaces the children in place. False if the node cannot do that (const members): then a
  /// rebuilt node replaces it.
  virtual bool assign(const std::vector<Value>& children) {
    static_cast<void>(children);
    return false;
  }

 protected:
  Node() = default;
  Node(const Node&) = default;
  Node& operator=(const Node&) = default;
};

/// The node that a type without a registered decoder decodes to. It encodes to the same bytes
/// again.
class MESHSTAGE_API OpaqueNode : public Node {
 public:
  OpaqueNode(std::string type_name, std::vector<Child> children, Value auxiliary)
      : type_name_(std::move(type_name)),
        children_(std::move(children)),
        auxiliary_(std::move(auxiliary)) {}
  [[nodiscard]] std::string type_name() const override { return type_name_; }
  [[nodiscard]] std::vector<Child> children() const override { return children_; }
  [[nodiscard]] Value auxiliary() const override { return auxiliary_; }
  [[nodiscard]] NodePtr rebuild(std::vector<Value> children) const override;
  bool assign(const std::vector<Value>& children) override;

 private:
  std::string type_name_;
  std::vector<Child> children_;
  Value auxiliary_;
};

/// The decoder for each type of node. It is a value: copy it, extend it, pass it on.
class MESHSTAGE_API NodeRegistry {
 public:
  /// Makes a node from decoded parts. The parts come from bytes that may be hostile: check them and
  /// throw CorruptData. A decoder captures what it needs, for example a mesh.
  using Decoder = std::function<NodePtr(std::vector<Node::Child> children, const Value& auxiliary)>;
  /// Throws InvalidArgument if the name is taken.
  void add(const std::string& type_name, Decoder decoder);
  [[nodiscard]] bool contains(std::string_view type_name) const;
  /// Makes a node by the registered decoder, or an OpaqueNode if there is none.
  [[nodiscard]] NodePtr make(const std::string& type_name, std::vector<Node::Child> children,
                             Value auxiliary) const;

 private:
  std::map<std::string, Decoder, std::less<>> decoders_;
};

}  // namespace meshstage
