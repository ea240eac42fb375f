#include <meshstage/sharded/shard.hpp>

#include <charconv>
#include <limits>
#include <optional>
#include <ostream>

#include <meshstage/core/error/error.hpp>

namespace meshstage {
namespace {

/// Decimal digits only; nothing for anything else or a number above `most`.
std::optional<int> number(std::string_view text, int most) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || text.front() == '-' || error != std::errc() ||
      end != text.data() + text.size() || value > most) {
    return {};
  }
  return value;
}

std::optional<Device> device(std::string_view text) {
  if (text == "cpu") return kCpu;
  constexpr std::string_view kCuda = "cuda:";
  if (text.substr(0, kCuda.size()) != kCuda) return {};
  const auto index = number(text.substr(kCuda.size()), std::numeric_limits<std::int16_t>::max());
  if (!index) return {};
  return Device{DeviceType::kCuda, static_cast<std::int16_t>(*index)};
}

}  // namespace

std::string to_string(const ShardPlacement& placement) {
  return "rank:" + std::to_string(placement.rank) + "/" + to_string(placement.device);
}

ShardPlacement parse_shard_placement(std::string_view text) {
  constexpr std::string_view kRank = "rank:";
  const auto slash = text.find('/');
  if (slash != std::string_view::npos && text.substr(0, kRank.size()) == kRank) {
    const auto rank =
        number(text.substr(kRank.size(), slash - kRank.size()), std::numeric_limits<int>::max());
    const auto where = device(text.substr(slash + 1));
    if (rank && where) return {*rank, *where};
  }
  throw InvalidArgument("\"" + std::string(text) +
                        "\" is no placement of a shard; write rank:1/cuda:0 or rank:1/cpu");
}

std::string to_string(const ShardMetadata& shard) {
  return to_string(shard.sizes) + " at " + to_string(shard.offsets) + " on " +
         to_string(shard.placement);
}

std::ostream& operator<<(std::ostream& out, const ShardMetadata& shard) {
  return out << to_string(shard);
}

}  // namespace meshstage
