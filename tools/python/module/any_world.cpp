#include "any_world.hpp"

#include <cstddef>
#include <optional>
#include <span>
#include <unordered_set>
#include <utility>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tree/path.hpp>
#include <meshstage/core/tree/walk.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/sharded/node.hpp>

#include "dtensor.hpp"

namespace meshstage::python {
namespace {

constexpr char kAttributes[] = "%@";  // the part of a path below a tensor; see core/tree/path.hpp

using Kinds = std::map<std::string, PlainKind>;

/// The path with its keys as they are in the state: "model.0.weight" for "model.0%2Eweight".
std::string unescaped(const std::string& path) {
  std::string text;
  for (const auto& part : Path::split(path)) {
    if (!text.empty()) text += '.';
    if (part == kAttributes) {
      text += part;
      continue;
    }
    const Key key = Path::unescape(part);
    text += key.is_string() ? key.string() : std::to_string(key.integer());
  }
  return text;
}

/// The same of a user's path, who may have copied it from an error.
std::string as_written(const std::string& path) {
  try {
    return unescaped(path);
  } catch (const InvalidArgument&) {  // a key with a '%'
    return path;
  }
}

Kinds kinds_of(const KindNames& names) {
  static const std::map<std::string, PlainKind> known{{"same", PlainKind::kSame},
                                                      {"first", PlainKind::kFirst},
                                                      {"per rank", PlainKind::kPerRank},
                                                      {"summed", PlainKind::kSummed}};
  Kinds kinds;
  for (const auto& [path, name] : names) {
    const auto kind = known.find(name);
    if (kind == known.end()) {
      throw InvalidArgument("any_world: '" + path + "' is '" + name +
                            "'; a value is 'same', 'first', 'per rank' or 'summed'");
    }
    kinds.emplace(as_written(path), kind->second);
  }
  return kinds;
}

std::optional<PlainKind> find(const Kinds& kinds, const std::string& path) {
  if (kinds.empty()) return std::nullopt;
  for (std::size_t end = path.size();;) {
    if (const auto found = kinds.find(path.substr(0, end)); found != kinds.end()) {
      return found->second;
    }
    if (end == 0) return std::nullopt;
    const auto dot = path.rfind('.', end - 1);
    end = dot == std::string::npos ? 0 : dot;
  }
}

/// The paths of all that is below a value, as a user writes them.
void add_paths(const Value& value, Path& path, std::unordered_set<std::string>& paths) {
  detail::for_each_below(value, [&](const Key& key, const Value& inner) {
    path.push(key);
    paths.insert(unescaped(path.text()));
    add_paths(inner, path, paths);
    path.pop();
  });
}

constexpr char kEnd = '\0';  // of a path in a message

}  // namespace

PlainKinds::PlainKinds(const KindNames& of_user) : of_user_(kinds_of(of_user)) {}

void PlainKinds::set_of_state(const KindNames& of_state) { of_state_ = kinds_of(of_state); }

PlainKind PlainKinds::of(const std::string& path) const {
  if (of_user_.empty() && of_state_.empty()) return PlainKind::kSame;
  const std::string written = unescaped(path);
  if (const auto kind = find(of_user_, written)) return *kind;
  return find(of_state_, written).value_or(PlainKind::kSame);
}

std::vector<std::string> PlainKinds::absent_from(const Dict& state) const {
  std::unordered_set<std::string> there{""};  // the root
  Path path;
  add_paths(state, path, there);
  std::vector<std::string> absent;
  for (const auto& [name, kind] : of_user_) {
    const auto dot = name.rfind('.');
    const std::string above = dot == std::string::npos ? "" : name.substr(0, dot);
    const bool may_be_elsewhere =
        find(of_user_, above).value_or(find(of_state_, above).value_or(PlainKind::kSame)) ==
        PlainKind::kPerRank;
    if (!there.contains(name) && !may_be_elsewhere) absent.push_back(name);
  }
  return absent;
}

std::vector<std::string> absent_everywhere(const PlainKinds& kinds, const Dict& state,
                                           ProcessGroup& group) {
  std::vector<std::string> absent = kinds.absent_from(state);
  std::string mine;
  for (const auto& path : absent) mine += path + kEnd;
  for (const auto& bytes : collectives::all_gather_bytes(group, std::as_bytes(std::span(mine)))) {
    const std::string theirs =
        kEnd + std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    std::erase_if(absent, [&](const std::string& path) {
      return theirs.find(kEnd + path + kEnd) == std::string::npos;
    });
  }
  return absent;
}

ReshardOptions any_world_options(std::shared_ptr<const PlainKinds> kinds) {
  ReshardOptions options;
  dtensor::register_boxes(options.readers);
  sharded::register_boxes(options.readers);
  options.readers.add(kUnplacedType, [](const auto&, const Value& placements) -> TensorBoxes {
    const auto* names = placements.get_if<std::string>();
    throw StructureMismatch(
        "a DTensor (" + (names == nullptr ? std::string() : *names) +
        ") of which is not known here how it lies on its mesh: only torch knows "
        "its placements, or its owner has cut it otherwise, or its mesh lacks "
        "the rank; another number of ranks cannot take it");
  });
  options.plain = [kinds = std::move(kinds)](const std::string& path) { return kinds->of(path); };
  return options;
}

}  // namespace meshstage::python
