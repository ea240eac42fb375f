#pragma once
#include <array>
#include <concepts>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <meshstage/core/tree/node.hpp>

namespace meshstage {

/// Lets a struct of yours take part in a state dict: specialise Fields with its name and members.
///
///     struct Config {
///       const std::string name;
///       double lr;
///       std::vector<Tensor> buffers;
///       Inner inner;
///     };
///     template <>
///     struct meshstage::Fields<Config> {
///       static constexpr auto type_name = "myapp.Config";
///       static constexpr auto members = std::tuple(
///           field("name", &Config::name), field("lr", &Config::lr),
///           field("buffers", &Config::buffers), field("inner", &Config::inner));
///     };
///
///     Dict state{{"config", struct_node(config)}};      // takes a copy of config
///     const Value staged = stager.stage(state);
///     const Config& copy = struct_of<Config>(staged.at("config"));
///     add_struct<Config>(registry);                     // to decode it from an image
///
/// The struct is rebuilt by `Config{name, lr, buffers, inner}`, so it must be an aggregate or have
/// such a constructor; its members may be const. A member is bool, a number, an enum, a string,
/// Bytes, List, Tuple, Dict, Tensor, NodePtr, Value, a struct with Fields, or a std::vector,
/// std::array or std::optional of these. Copies of handles (Tensor, List, ...) share what they
/// refer to, as everywhere.
template <class T>
struct Fields;

/// One member: its name in paths, and a pointer to it.
template <class T, class M>
struct Field {
  using Member = std::remove_const_t<M>;
  const char* name;
  M T::* member;
};
template <class T, class M>
constexpr Field<T, M> field(const char* name, M T::* member) {
  return {name, member};
}

template <class T>
concept HasFields = requires {
  { Fields<T>::type_name } -> std::convertible_to<std::string_view>;
  Fields<T>::members;
};

template <HasFields T>
class StructNode;

namespace detail {

template <class T>
inline constexpr bool kIsVector = false;
template <class E>
inline constexpr bool kIsVector<std::vector<E>> = !std::same_as<E, std::byte>;
template <class T>
inline constexpr bool kIsArray = false;
template <class E, std::size_t N>
inline constexpr bool kIsArray<std::array<E, N>> = true;
template <class T>
inline constexpr bool kIsOptional = false;
template <class E>
inline constexpr bool kIsOptional<std::optional<E>> = true;

template <class M>
Value value_of(const M& member);
template <class M>
M member_of(const Value& value);

}  // namespace detail

/// A struct with Fields as a Node: its members are the children. Only assign() changes it.
template <HasFields T>
class StructNode final : public Node {
 public:
  explicit StructNode(T value) : value_(std::move(value)) {}
  /// The struct; assign() changes it in place.
  [[nodiscard]] const T& value() const noexcept { return value_; }

  [[nodiscard]] std::string type_name() const override { return std::string(Fields<T>::type_name); }
  [[nodiscard]] std::vector<Child> children() const override {
    return std::apply(
        [this](const auto&... f) {
          return std::vector<Child>{Child{f.name, detail::value_of(value_.*(f.member))}...};
        },
        Fields<T>::members);
  }
  [[nodiscard]] NodePtr rebuild(std::vector<Value> children) const override {
    return std::make_shared<StructNode>(build(children));
  }
  bool assign(const std::vector<Value>& children) override {
    if constexpr (std::is_move_assignable_v<T>) {
      value_ = build(children);
      return true;
    } else {
      return false;
    }
  }

  /// Makes the struct of `members`, in their order. Throws InvalidArgument if a member is of
  /// another kind.
  static T build(const std::vector<Value>& members) {
    constexpr auto kCount = std::tuple_size_v<std::remove_const_t<decltype(Fields<T>::members)>>;
    if (members.size() != kCount) {
      throw InvalidArgument("a struct " + std::string(Fields<T>::type_name) + " has " +
                            std::to_string(kCount) + " members, not " +
                            std::to_string(members.size()));
    }
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return T{member<I>(members[I])...};
    }(std::make_index_sequence<kCount>());
  }

 private:
  template <std::size_t I>
  static auto member(const Value& value) {
    const auto& f = std::get<I>(Fields<T>::members);
    try {
      return detail::member_of<typename std::remove_cvref_t<decltype(f)>::Member>(value);
    } catch (const InvalidArgument& e) {
      throw InvalidArgument(std::string(Fields<T>::type_name) + "." + f.name + ": " + e.what());
    }
  }
  T value_;
};

/// A node with a copy of a struct, for a state dict.
template <HasFields T>
[[nodiscard]] std::shared_ptr<StructNode<T>> struct_node(T value) {
  return std::make_shared<StructNode<T>>(std::move(value));
}

/// The struct in a Value; valid as long as the Value's node. Throws InvalidArgument if the Value is
/// no such struct. That includes an OpaqueNode of the same name, so call add_struct() before
/// decoding.
template <HasFields T>
[[nodiscard]] const T& struct_of(const Value& value) {
  const auto& node = value.as<NodePtr>();
  if (const auto* mine = dynamic_cast<const StructNode<T>*>(node.get())) return mine->value();
  throw InvalidArgument("a struct " + std::string(Fields<T>::type_name) + " is wanted, not " +
                        value.describe());
}

/// Makes `registry` decode structs T in images (structs within T need an add_struct() of their
/// own). Bytes that do not match T's fields give CorruptData.
template <HasFields T>
void add_struct(NodeRegistry& registry) {
  registry.add(std::string(Fields<T>::type_name),
               [](std::vector<Node::Child> children, const Value&) -> NodePtr {
                 std::vector<Value> members;
                 std::apply(
                     [&](const auto&... f) {
                       std::size_t i = 0;
                       const auto take = [&](std::string_view name) {
                         if (i >= children.size() || children[i].name != name) {
                           throw CorruptData("a struct " + std::string(Fields<T>::type_name) +
                                             " has no member " + std::string(name));
                         }
                         members.push_back(std::move(children[i++].value));
                       };
                       (take(f.name), ...);
                     },
                     Fields<T>::members);
                 if (members.size() != children.size()) {
                   throw CorruptData("a struct " + std::string(Fields<T>::type_name) +
                                     " has too many members");
                 }
                 try {
                   return std::make_shared<StructNode<T>>(StructNode<T>::build(members));
                 } catch (const InvalidArgument& e) {
                   throw CorruptData(e.what());
                 }
               });
}

namespace detail {

template <class M>
Value value_of(const M& member) {
  if constexpr (HasFields<M>) {
    return struct_node(member);
  } else if constexpr (std::is_enum_v<M>) {
    return static_cast<std::underlying_type_t<M>>(member);
  } else if constexpr (kIsOptional<M>) {
    return member ? value_of(*member) : Value();
  } else if constexpr (kIsVector<M> || kIsArray<M>) {
    std::vector<Value> values;
    for (const auto& element : member) values.push_back(value_of(element));
    return List(std::move(values));
  } else {
    return Value(member);
  }
}

template <class M>
M member_of(const Value& value) {
  if constexpr (HasFields<M>) {
    return struct_of<M>(value);
  } else if constexpr (std::same_as<M, Value>) {
    return value;
  } else if constexpr (std::is_enum_v<M>) {
    return static_cast<M>(value.as<std::underlying_type_t<M>>());
  } else if constexpr (std::floating_point<M>) {
    return static_cast<M>(value.as<double>());
  } else if constexpr (kIsOptional<M>) {
    return value.is_null() ? M() : M(member_of<typename M::value_type>(value));
  } else if constexpr (kIsVector<M>) {
    const auto& list = value.as<List>();
    M result;
    for (const auto& element : list) result.push_back(member_of<typename M::value_type>(element));
    return result;
  } else if constexpr (kIsArray<M>) {
    const auto& list = value.as<List>();
    M result{};
    if (list.size() != result.size()) {
      throw InvalidArgument(std::to_string(list.size()) + " elements for an array of " +
                            std::to_string(result.size()));
    }
    for (std::size_t i = 0; i < result.size(); ++i)
      result[i] = member_of<typename M::value_type>(list[i]);
    return result;
  } else {
    return value.as<M>();
  }
}

}  // namespace detail

}  // namespace meshstage
