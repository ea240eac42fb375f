#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <meshstage/core/tree/value.hpp>

#include "tools/snapshot/open.hpp"

namespace meshstage::tools {

/// One place in a state dict, or one tensor of a safetensors file, as it is printed.
struct Entry {
  std::size_t depth = 0;
  std::string label;           ///< The last part of the path.
  std::string path;            ///< As Path::text(); of another program's file, the name as written.
  std::string plain;           ///< The parts joined by dots, nothing escaped.
  std::string kind;            ///< "dict", "tensor", "int", ...
  Value value;                 ///< What stands there; a tensor keeps its bytes alive.
  std::string node_type;       ///< Of a Node.
  std::uint64_t children = 0;  ///< Of a container or Node.
  /// Where the same object (container, node, tensor) came before; then its inside is not repeated.
  std::optional<std::string> same_as;

  // Tensors only.
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::vector<std::int64_t> strides;  ///< In elements; empty if contiguous.
  std::int64_t offset = 0;            ///< Into its storage, in elements.
  std::uint64_t bytes = 0;            ///< Of its elements.
  std::size_t storage = 0;            ///< Number of its storage, in the order of the tree.
  std::uint64_t storage_bytes = 0;
  std::optional<std::string> shares_with;  ///< The first tensor on the same storage.
  std::optional<int> lender;               ///< The rank that has it; here, in a replica, it is not.

  [[nodiscard]] bool is_tensor() const noexcept { return kind == "tensor"; }
  /// "F32[2, 3] strides [1, 2]", "dict of 4", "int 7".
  [[nodiscard]] std::string describe() const;
  /// "shares storage with model.wte", "not here: borrowed from rank 1", or empty.
  [[nodiscard]] std::string note() const;
  [[nodiscard]] nlohmann::ordered_json to_json() const;
};

/// What happens where one object is held in several places.
enum class Repeat : std::uint8_t {
  kOnce,   ///< Its inside is listed at the first.
  kAlways  ///< Each path is listed.
};

/// The tree below `state`, depth first; the root itself only if it is no container. Throws
/// CorruptData if the paths together exceed a bound (a tree may hold one object in so many places
/// that its paths are without end).
std::vector<Entry> list_entries(const Value& state, Repeat repeat);
/// The same of a snapshot; of another program's file, the tensors in the order of their bytes, by
/// their names as written.
std::vector<Entry> list_entries(const Snapshot& snapshot, Repeat repeat);

/// Keeps the entries at or below `path` (escaped or plain), and makes depths count from there.
/// Throws NotFound if there are none.
void keep_below(std::vector<Entry>& entries, const std::string& path);

/// What other readers want is the keys joined by dots. False where two paths would become one name
/// (a key with a dot in it), or a name would not be one: then all are escaped instead.
bool plain_names_do(const std::vector<Entry>& entries);

/// Under which key of its metadata an exported file has what is no tensor: a JSON object by name.
inline constexpr const char* kExportedValues = "meshstage.values";
/// That object as text; bytes that are not UTF-8 are replaced.
std::string values_text(const nlohmann::ordered_json& values);

/// A scalar for JSON; bytes as hex, what is not finite as a string.
nlohmann::ordered_json scalar_json(const Value& scalar);

}  // namespace meshstage::tools
