#include "tools/drill/compare.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <meshstage/core/image/safetensors.hpp>

#include "tools/trainer/saved_state.hpp"

namespace meshstage::tools::drill {
namespace {

using trainer::SavedState;

// The element at that byte, as a number; F32 and I64 are all that the trainer saves.
std::string element(const SafetensorsEntry& entry, std::span<const char> data, std::size_t index) {
  if (entry.dtype == "F32") {
    float value = 0;
    std::memcpy(&value, data.data() + index * sizeof value, sizeof value);
    return fmt::format("{:.9g}", value);
  }
  std::int64_t value = 0;
  std::memcpy(&value, data.data() + index * sizeof value, sizeof value);
  return std::to_string(value);
}

std::string place(const SafetensorsEntry& entry, std::size_t index) {
  if (entry.name == "history.loss") return fmt::format("loss of step {}", index + 1);
  if (entry.name == "history.rank_loss") return fmt::format("own loss of step {}", index + 1);
  if (entry.shape.empty()) return entry.name;
  std::vector<std::size_t> coordinates(entry.shape.size());
  for (std::size_t d = entry.shape.size(); d-- > 0;) {
    coordinates[d] = index % entry.shape[d];
    index /= entry.shape[d];
  }
  return fmt::format("{}[{}]", entry.name, fmt::join(coordinates, ", "));
}

std::optional<std::string> difference(const SavedState& a, const SavedState& b,
                                      const SafetensorsEntry& entry) {
  const SafetensorsEntry* other = b.index.find(entry.name);
  if (other == nullptr) return entry.name + ": missing";
  if (entry.dtype != other->dtype || entry.shape != other->shape) {
    return fmt::format("{}: {}[{}] against {}[{}]", entry.name, entry.dtype,
                       fmt::join(entry.shape, ", "), other->dtype, fmt::join(other->shape, ", "));
  }
  const auto left = a.data(entry);
  const auto right = b.data(*other);
  const auto at = std::mismatch(left.begin(), left.end(), right.begin());
  if (at.first == left.end()) return std::nullopt;
  const auto width = entry.dtype == "F32" ? sizeof(float) : sizeof(std::int64_t);
  const auto index = static_cast<std::size_t>(at.first - left.begin()) / width;
  return fmt::format("{}: {} against {}", place(entry, index), element(entry, left, index),
                     element(entry, right, index));
}

}  // namespace

std::optional<std::string> first_difference(const std::filesystem::path& whole,
                                            const std::filesystem::path& recovered) {
  const SavedState a(whole);
  const SavedState b(recovered);
  for (const bool history : {true, false}) {
    for (const auto& entry : a.index.entries()) {
      if (entry.name.starts_with("history.") != history) continue;
      if (auto found = difference(a, b, entry)) return found;
    }
  }
  for (const auto& entry : b.index.entries()) {
    if (a.index.find(entry.name) == nullptr) return entry.name + ": should not be there";
  }
  return std::nullopt;
}

}  // namespace meshstage::tools::drill
