#include "any_world.hpp"

#include <optional>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/sharded/node.hpp>

namespace meshstage::python {
namespace {

using Kinds = std::map<std::string, PlainKind>;

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
    kinds.emplace(path, kind->second);
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

}  // namespace

PlainKinds::PlainKinds(const KindNames& of_user) : of_user_(kinds_of(of_user)) {}

void PlainKinds::set_of_state(const KindNames& of_state) { of_state_ = kinds_of(of_state); }

PlainKind PlainKinds::of(const std::string& path) const {
  if (const auto kind = find(of_user_, path)) return *kind;
  return find(of_state_, path).value_or(PlainKind::kSame);
}

ReshardOptions any_world_options(std::shared_ptr<const PlainKinds> kinds) {
  ReshardOptions options;
  dtensor::register_boxes(options.readers);
  sharded::register_boxes(options.readers);
  options.plain = [kinds = std::move(kinds)](const std::string& path) { return kinds->of(path); };
  return options;
}

}  // namespace meshstage::python
