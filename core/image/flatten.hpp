#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/tensor/storage_groups.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::detail {

/// One step of the walk over a state dict: the kind of value met there, so that a later walk can be
/// compared with this one.
struct FlatItem {
  ValueKind kind = ValueKind::kNull;  ///< kNull for every scalar.
  bool again = false;                 ///< A container or node that was met before.
  bool attributes = false;            ///< A tensor with attributes: their dict is the next item.
  std::uint32_t index = 0;            ///< Index of the tensor object, or of the container or node.
  std::uint32_t count = 0;            ///< Elements, entries or children.
};

struct FlatTensor {
  Tensor tensor;
  std::uint32_t source = 0;   ///< Its storage in the state dict.
  std::uint32_t storage = 0;  ///< Its storage in an image, and the offset there, in elements.
  std::int64_t offset = 0;
  std::string path;  ///< The first path at which the walk met it.
};

struct FlatNode {
  std::string type_name;
  Value auxiliary;
};

/// A state dict taken apart. Each distinct object has an index in the order of the walk: depth
/// first, a tensor's attributes directly behind the tensor.
struct FlatState {
  std::vector<FlatItem> items;
  std::vector<Key> keys;         ///< Of the entries of dicts and the children of nodes.
  std::vector<FlatNode> nodes;   ///< Distinct ones.
  std::vector<Storage> sources;  ///< The state dict's storages.
  /// The storages in an image: one for each source, unless external memory overlaps. `places` says
  /// where each source lies in them.
  std::vector<Storage> storages;
  std::vector<GroupPlace> places;  ///< By source.
  std::vector<FlatTensor> tensors;
  /// The identities of distinct containers and nodes, and handles that keep the identities from
  /// being reused.
  std::vector<const void*> containers;
  std::vector<std::weak_ptr<const void>> holds;
  std::string tree;               ///< JSON: FORMAT.md, "Tree".
  std::vector<std::byte> values;  ///< The stream of scalars.
};

/// The most levels of JSON in the structure: enough for a tree of kMaxTreeDepth and the auxiliary
/// data of nodes.
inline constexpr std::size_t kMaxJsonDepth = 4 * kMaxTreeDepth + 16;
/// How deeply arrays and objects are nested in a text of JSON.
std::size_t json_depth(std::string_view text);

/// Takes `state` apart; does not read any tensor's memory. Throws InvalidArgument, naming the path,
/// for a cycle, for a tree or auxiliary data too deep, and for external memory that overlaps at a
/// distance that is no multiple of an element.
FlatState flatten(const Value& state);

/// Appends a JSON string. `text` must come from Path::escape (valid UTF-8, no control characters).
void append_json_string(std::string& json, std::string_view text);

}  // namespace meshstage::detail
