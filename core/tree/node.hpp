#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// How a type that is neither container nor tensor takes part in a state dict: a name, Values below
/// it, and plain data that describes it. Held by shared_ptr; one held in two places is one object
/// after staging too.
class MESHSTAGE_API Node {
 public:
  struct Child {
    std::string name;  ///< A part of the path; unique among the children.
    Value value;
  };
  virtual ~Node() = default;
  /// Names the type in images and in the registry: "dtensor", "myapp.Config".
  [[nodiscard]] virtual std::string type_name() const = 0;
  /// Number and names must stay while the structure does. Called on the staging thread's caller.
  [[nodiscard]] virtual std::vector<Child> children() const = 0;
  /// Plain data (scalars in lists, tuples and dicts) that is part of the structure: a change of it
  /// makes a new plan. What changes from step to step belongs to the children.
  [[nodiscard]] virtual Value auxiliary() const { return {}; }
  /// A new node of this type with `children` in place of its own, in the same order.
  [[nodiscard]] virtual NodePtr rebuild(std::vector<Value> children) const = 0;
  /// Takes `children` in place. False if it cannot (const members): then a rebuilt one replaces it.
  virtual bool assign(const std::vector<Value>& children) {
    static_cast<void>(children);
    return false;
  }

 protected:
  Node() = default;
  Node(const Node&) = default;
  Node& operator=(const Node&) = default;
};

/// What a type that nobody registered decodes to. It encodes to the same bytes again.
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

/// Which decoder makes which type of node. A value: copy it, extend it, pass it on.
class MESHSTAGE_API NodeRegistry {
 public:
  /// Makes a node from decoded parts. These come from bytes that may be hostile: check them and
  /// throw CorruptData. It captures what it needs (a mesh, say).
  using Decoder = std::function<NodePtr(std::vector<Node::Child> children, const Value& auxiliary)>;
  /// Throws InvalidArgument if the name is taken.
  void add(const std::string& type_name, Decoder decoder);
  [[nodiscard]] bool contains(std::string_view type_name) const;
  /// By the registered decoder, else an OpaqueNode.
  [[nodiscard]] NodePtr make(const std::string& type_name, std::vector<Node::Child> children,
                             Value auxiliary) const;

 private:
  std::map<std::string, Decoder, std::less<>> decoders_;
};

}  // namespace meshstage
