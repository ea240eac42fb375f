#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/core/tree/key.hpp>
#include <meshstage/core/tree/path.hpp>

namespace meshstage {

class Value;
class Node;
template <class V>
class BasicPlace;
/// A value inside a container, with its path for messages. Valid until its container changes.
using Place = BasicPlace<Value>;
using ConstPlace = BasicPlace<const Value>;

using Bytes = std::vector<std::byte>;

/// The greatest depth of a tree: every walk and every decoder refuses a deeper one.
inline constexpr std::size_t kMaxTreeDepth = 128;
using NodePtr = std::shared_ptr<Node>;

enum class ValueKind : std::uint8_t {
  kNull,
  kBool,
  kInt,
  kDouble,
  kString,
  kBytes,
  kList,
  kTuple,
  kDict,
  kTensor,
  kNode
};
MESHSTAGE_API std::string_view to_string(ValueKind kind) noexcept;  ///< "null", "bool", "int", ...

/// The base of List and Tuple: a handle to a sequence of Values. Copies share the elements and have
/// the same identity().
class MESHSTAGE_API Sequence {
 public:
  [[nodiscard]] std::size_t size() const noexcept;
  [[nodiscard]] bool empty() const noexcept { return size() == 0; }
  [[nodiscard]] Value& operator[](std::size_t i) noexcept;
  [[nodiscard]] const Value& operator[](std::size_t i) const noexcept;
  /// Throws NotFound, naming index and size.
  [[nodiscard]] Place at(std::size_t i);
  [[nodiscard]] ConstPlace at(std::size_t i) const;
  [[nodiscard]] const Value* begin() const noexcept;
  [[nodiscard]] const Value* end() const noexcept;
  [[nodiscard]] Value* begin() noexcept;
  [[nodiscard]] Value* end() noexcept;
  [[nodiscard]] const void* identity() const noexcept { return impl_.get(); }
  [[nodiscard]] std::weak_ptr<const void> weak() const noexcept { return impl_; }

 protected:
  Sequence();
  explicit Sequence(std::vector<Value> values);
  std::shared_ptr<std::vector<Value>> impl_;
};

/// Mutable sequence. Write a list in a list as List{Value(inner)}: compilers do not agree whether
/// List{inner} is a list that holds `inner` or another handle to it (CWG 2137; g++ 12 and clang 19
/// differ). The same goes for Tuple.
class MESHSTAGE_API List : public Sequence {
 public:
  List() = default;
  List(std::initializer_list<Value> values);
  explicit List(std::vector<Value> values);
  void push_back(Value value);
  void clear() noexcept;
  /// A new list with the same elements. Nested containers are cloned, too; tensors are not copied
  /// (the clone holds the same tensor objects). Places that share an object still share one. Throws
  /// InvalidArgument on a cycle.
  [[nodiscard]] List clone() const;
};

/// Sequence of fixed length; its elements can be replaced in place.
class MESHSTAGE_API Tuple : public Sequence {
 public:
  Tuple() = default;
  Tuple(std::initializer_list<Value> values);
  explicit Tuple(std::vector<Value> values);
  [[nodiscard]] Tuple clone() const;  ///< As List::clone().
};

/// Keys to Values in the order of insertion, hashed lookup. A handle: copying shares the entries.
class MESHSTAGE_API Dict {
 public:
  /// Change the value only, never the key.
  using Entry = std::pair<Key, Value>;

  Dict();
  /// A new Dict with the keys of `other`, in their order, and null for each value.
  [[nodiscard]] static Dict with_keys_of(const Dict& other);
  /// Dict{{"model", tensors}, {"lr", 0.1}}. A key that comes twice throws InvalidArgument.
  Dict(std::initializer_list<std::pair<Key, Value>> entries);

  [[nodiscard]] std::size_t size() const noexcept;
  [[nodiscard]] bool empty() const noexcept { return size() == 0; }
  [[nodiscard]] bool contains(const Key& key) const noexcept { return find(key) != nullptr; }
  /// Null if there is no such key. Valid until an entry is removed or added.
  [[nodiscard]] Value* find(const Key& key) noexcept;
  [[nodiscard]] const Value* find(const Key& key) const noexcept;
  /// Throws NotFound, naming the key and some that exist.
  [[nodiscard]] Place at(const Key& key);
  [[nodiscard]] ConstPlace at(const Key& key) const;
  /// Inserts null, last in order, if there is no such key.
  Value& operator[](const Key& key);
  /// Replaces the value (the key keeps its place) or appends.
  void set(const Key& key, Value value);
  /// False if there was no such key. The other entries keep their order; takes time proportional to
  /// size().
  bool erase(const Key& key);
  void clear() noexcept;

  [[nodiscard]] const Entry* begin() const noexcept;
  [[nodiscard]] const Entry* end() const noexcept;
  [[nodiscard]] Entry* begin() noexcept;
  [[nodiscard]] Entry* end() noexcept;
  [[nodiscard]] const void* identity() const noexcept;
  [[nodiscard]] std::weak_ptr<const void> weak() const noexcept;
  [[nodiscard]] Dict clone() const;  ///< As List::clone().

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

/// One value of a state dict: a scalar, a container handle, a tensor (with attributes), or a Node.
/// Copying a Value copies scalars, strings and bytes, and shares the rest.
/// Threads: like std::vector: no thread may read a tree while another changes it.
class MESHSTAGE_API Value {
 public:
  Value() = default;        ///< null
  Value(std::nullptr_t) {}  // NOLINT(google-explicit-constructor)
  template <std::same_as<bool> B>
  Value(B b) : value_(b) {}  // NOLINT(google-explicit-constructor)
  /// Integers of any width are int64; an unsigned one above 2^63 - 1 throws InvalidArgument.
  template <std::integral I>
    requires(!std::same_as<I, bool>)
  Value(I number)
      : value_(static_cast<std::int64_t>(number)) {  // NOLINT(google-explicit-constructor)
    if (!std::in_range<std::int64_t>(number)) {
      throw InvalidArgument("the value " + std::to_string(number) + " does not fit 64 signed bits");
    }
  }
  template <std::floating_point F>
  Value(F number) : value_(static_cast<double>(number)) {}  // NOLINT(google-explicit-constructor)
  Value(const char* text);                                  // NOLINT(google-explicit-constructor)
  Value(std::string_view text);                             // NOLINT(google-explicit-constructor)
  Value(std::string text);                                  // NOLINT(google-explicit-constructor)
  Value(Bytes bytes) : value_(std::move(bytes)) {}          // NOLINT(google-explicit-constructor)
  Value(List list) : value_(std::move(list)) {}             // NOLINT(google-explicit-constructor)
  Value(Tuple tuple) : value_(std::move(tuple)) {}          // NOLINT(google-explicit-constructor)
  Value(Dict dict) : value_(std::move(dict)) {}             // NOLINT(google-explicit-constructor)
  /// Throws InvalidArgument for an undefined tensor.
  Value(Tensor tensor);  // NOLINT(google-explicit-constructor)
  /// A tensor leaf with attributes, which may be any Values, tensors too. The attributes belong to
  /// this leaf, not to the tensor.
  Value(Tensor tensor, Dict attributes);
  /// Throws InvalidArgument for a null pointer.
  template <std::derived_from<Node> N>
  Value(std::shared_ptr<N> node)
      : Value(NodeTag{}, std::move(node)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] ValueKind kind() const noexcept { return static_cast<ValueKind>(value_.index()); }
  [[nodiscard]] bool is_null() const noexcept { return kind() == ValueKind::kNull; }
  [[nodiscard]] bool is_container() const noexcept {
    return kind() == ValueKind::kList || kind() == ValueKind::kTuple || kind() == ValueKind::kDict;
  }
  /// True if neither container, tensor nor Node: an image keeps such values in its values entry.
  [[nodiscard]] bool is_scalar() const noexcept { return kind() <= ValueKind::kBytes; }

  /// The value as T: bool, an integer type (checked), double, std::string, Bytes, List, Tuple,
  /// Dict, Tensor or NodePtr. Throws InvalidArgument, naming both kinds. Nothing converts silently.
  template <class T>
  [[nodiscard]] decltype(auto) as() const;
  /// Null where the value is not a T (exactly: std::int64_t, double, ...).
  template <class T>
  [[nodiscard]] const T* get_if() const noexcept;
  template <class T>
  [[nodiscard]] T* get_if() noexcept;

  /// The entry of a Dict, element of a List or Tuple. Throws NotFound, or InvalidArgument if this
  /// value is none of these. Errors of the Place name its path: v.at("a").at("b").as<Tensor>().
  [[nodiscard]] Place at(const Key& key);
  [[nodiscard]] ConstPlace at(const Key& key) const;

  /// A tensor leaf's attributes; null if it has none or this is no tensor.
  [[nodiscard]] const Dict* attributes() const noexcept;
  [[nodiscard]] Dict* attributes() noexcept;

  /// Like List::clone(): copies containers, attributes and nodes; tensors stay the same objects.
  [[nodiscard]] Value clone() const;
  /// One short line: "int 7", "F32[2, 3]", "dict of 4".
  [[nodiscard]] std::string describe() const;

 private:
  struct NodeTag {};
  Value(NodeTag, NodePtr node);
  Value(Tensor tensor, std::shared_ptr<Dict> attributes);
  struct TensorLeaf {
    Tensor tensor;
    std::shared_ptr<Dict> attributes;  // null for none
  };
  template <class>
  friend class BasicPlace;
  template <class T>
  [[nodiscard]] decltype(auto) as_at(const Path* where) const;
  [[nodiscard]] const Value& child(const Key& key, const Path* where) const;
  [[noreturn]] void wrong_kind(std::string_view wanted, const Path* where) const;
  [[noreturn]] void out_of_range(const Path* where) const;
  std::variant<std::monostate, bool, std::int64_t, double, std::string, Bytes, List, Tuple, Dict,
               TensorLeaf, NodePtr>
      value_;
};

namespace detail {
template <class T>
inline constexpr std::string_view kind_name = T::not_a_kind_of_value;
template <>
inline constexpr std::string_view kind_name<bool> = "bool";
template <>
inline constexpr std::string_view kind_name<std::int64_t> = "int";
template <>
inline constexpr std::string_view kind_name<double> = "double";
template <>
inline constexpr std::string_view kind_name<std::string> = "string";
template <>
inline constexpr std::string_view kind_name<Bytes> = "bytes";
template <>
inline constexpr std::string_view kind_name<List> = "list";
template <>
inline constexpr std::string_view kind_name<Tuple> = "tuple";
template <>
inline constexpr std::string_view kind_name<Dict> = "dict";
template <>
inline constexpr std::string_view kind_name<Tensor> = "tensor";
template <>
inline constexpr std::string_view kind_name<NodePtr> = "node";
}  // namespace detail

template <class T>
const T* Value::get_if() const noexcept {
  if constexpr (std::same_as<T, Tensor>) {
    const auto* leaf = std::get_if<TensorLeaf>(&value_);
    return leaf ? &leaf->tensor : nullptr;
  } else {
    return std::get_if<T>(&value_);
  }
}

template <class T>
T* Value::get_if() noexcept {
  return const_cast<T*>(std::as_const(*this).template get_if<T>());
}

template <class T>
decltype(auto) Value::as() const {
  return as_at<T>(nullptr);
}

template <class T>
decltype(auto) Value::as_at(const Path* where) const {
  if constexpr (std::integral<T> && !std::same_as<T, bool>) {
    const auto* number = get_if<std::int64_t>();
    if (!number) wrong_kind("int", where);
    if (!std::in_range<T>(*number)) out_of_range(where);
    return static_cast<T>(*number);
  } else {
    const T* found = get_if<T>();
    if (!found) wrong_kind(detail::kind_name<T>, where);
    return static_cast<const T&>(*found);
  }
}

template <class V>
class BasicPlace {
 public:
  BasicPlace(V& value, Path path) : value_(&value), path_(std::move(path)) {}
  [[nodiscard]] V& value() const noexcept { return *value_; }
  [[nodiscard]] V& operator*() const noexcept { return *value_; }
  [[nodiscard]] V* operator->() const noexcept { return value_; }
  operator const Value&() const noexcept { return *value_; }  // NOLINT(google-explicit-constructor)
  [[nodiscard]] const Path& path() const noexcept { return path_; }
  [[nodiscard]] ValueKind kind() const noexcept { return value_->kind(); }
  /// Like Value::as(), but the error names the path.
  template <class T>
  [[nodiscard]] decltype(auto) as() const {
    return value_->template as_at<T>(&path_);
  }
  [[nodiscard]] BasicPlace at(const Key& key) const {
    // As mutable as this place is: containers are handles.
    auto& inner = const_cast<V&>(value_->child(key, &path_));
    Path path = path_;
    path.push(key);
    return BasicPlace(inner, std::move(path));
  }
  /// Replaces the value in its container.
  void set(Value value) const
    requires(!std::is_const_v<V>)
  {
    *value_ = std::move(value);
  }

 private:
  V* value_;
  Path path_;
};

}  // namespace meshstage
