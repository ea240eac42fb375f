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
#include "tools/trainer/state.hpp"

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

// A tensor as one job has it.
struct Saved {
  SafetensorsEntry entry;
  std::vector<char> data;
};

std::optional<Saved> find(const SavedState& state, const std::string& name) {
  const SafetensorsEntry* entry = state.index.find(name);
  if (entry == nullptr) return std::nullopt;
  const auto data = state.data(*entry);
  return Saved{*entry, {data.begin(), data.end()}};
}

// The parts one after the other, along dimension 0.
std::optional<Saved> join(const std::vector<SavedState>& parts, const std::string& name) {
  std::optional<Saved> whole;
  for (const auto& part : parts) {
    const auto more = find(part, name);
    if (!more || more->entry.shape.empty()) return std::nullopt;
    if (!whole) {
      whole = more;
      continue;
    }
    whole->entry.shape[0] += more->entry.shape[0];
    whole->data.insert(whole->data.end(), more->data.begin(), more->data.end());
  }
  return whole;
}

std::optional<std::string> difference(const Saved& a, const std::optional<Saved>& b) {
  const SafetensorsEntry& entry = a.entry;
  if (!b) return entry.name + ": missing";
  if (entry.dtype != b->entry.dtype || entry.shape != b->entry.shape) {
    return fmt::format("{}: {}[{}] against {}[{}]", entry.name, entry.dtype,
                       fmt::join(entry.shape, ", "), b->entry.dtype,
                       fmt::join(b->entry.shape, ", "));
  }
  const auto at = std::mismatch(a.data.begin(), a.data.end(), b->data.begin());
  if (at.first == a.data.end()) return std::nullopt;
  const auto width = entry.dtype == "F32" ? sizeof(float) : sizeof(std::int64_t);
  const auto index = static_cast<std::size_t>(at.first - a.data.begin()) / width;
  return fmt::format("{}: {} against {}", place(entry, index), element(entry, a.data, index),
                     element(entry, b->data, index));
}

}  // namespace

std::optional<std::string> first_difference(const std::filesystem::path& whole,
                                            const std::filesystem::path& recovered,
                                            const std::vector<std::filesystem::path>& cut) {
  const SavedState a(whole);
  const SavedState b(recovered);
  const std::vector<SavedState> parts(cut.begin(), cut.end());
  for (const bool history : {true, false}) {
    for (const auto& entry : a.index.entries()) {
      if (entry.name.starts_with("history.") != history) continue;
      const bool in_parts = !parts.empty() && trainer::is_moment(entry.name);
      const auto other = in_parts ? join(parts, entry.name) : find(b, entry.name);
      if (auto found = difference(*find(a, entry.name), other)) return found;
    }
  }
  for (const auto& entry : b.index.entries()) {
    if (a.index.find(entry.name) == nullptr) return entry.name + ": should not be there";
  }
  return std::nullopt;
}

}  // namespace meshstage::tools::drill
