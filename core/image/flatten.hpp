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

/// One step of the walk over a state dict, in the order of the walk: what is there, so that a later
/// walk can be checked against it.
struct FlatItem {
  ValueKind kind = ValueKind::kNull;  ///< kNull for every scalar.
  bool again = false;                 ///< A container or node that was met before.
  bool attributes = false;            ///< A tensor that has some: their dict is the next item.
  std::uint32_t index = 0;            ///< Of the tensor object, or of the container or node.
  std::uint32_t count = 0;            ///< Elements, entries or children.
};

struct FlatTensor {
  Tensor tensor;
  std::uint32_t source = 0;   ///< Its storage in the state dict.
  std::uint32_t storage = 0;  ///< Its storage in an image, and the offset there, in elements.
  std::int64_t offset = 0;
  std::string path;  ///< Where it was met first.
};

struct FlatNode {
  std::string type_name;
  Value auxiliary;
};

/// A state dict taken apart. Everything distinct has an index in the order of the walk: depth
/// first, a tensor's attributes directly behind it.
struct FlatState {
  std::vector<FlatItem> items;
  std::vector<Key> keys;         ///< Of the entries of dicts and the children of nodes.
  std::vector<FlatNode> nodes;   ///< Distinct ones.
  std::vector<Storage> sources;  ///< The state dict's storages.
  /// What an image has of them, and where: one for each, unless external memory overlaps.
  std::vector<Storage> storages;
  std::vector<GroupPlace> places;  ///< By source.
  std::vector<FlatTensor> tensors;
  /// Distinct containers and nodes: identities, and what keeps them from being reused.
  std::vector<const void*> containers;
  std::vector<std::weak_ptr<const void>> holds;
  std::string tree;               ///< JSON: FORMAT.md, "Tree".
  std::vector<std::byte> values;  ///< The stream of scalars.
};

/// Levels of JSON in the structure: what a tree of kMaxTreeDepth has, and some for the auxiliary
/// data of nodes.
inline constexpr std::size_t kMaxJsonDepth = 4 * kMaxTreeDepth + 16;
/// How deeply arrays and objects are nested in a text of JSON.
std::size_t json_depth(std::string_view text);

/// Throws InvalidArgument, naming the path: a cycle, a tree or auxiliary data too deep, external
/// memory that overlaps at a distance that is no multiple of an element. Reads no tensor's memory.
FlatState flatten(const Value& state);

/// A string as JSON, for text that Path::escape made (valid UTF-8, no control characters).
void append_json_string(std::string& json, std::string_view text);

}  // namespace meshstage::detail
