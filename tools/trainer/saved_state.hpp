#pragma once
#include <filesystem>
#include <span>
#include <vector>

#include <meshstage/core/image/safetensors.hpp>

namespace trainer {

/// What TrainingState::save() wrote.
struct SavedState {
  std::vector<char> bytes;
  meshstage::SafetensorsIndex index;

  /// Throws meshstage::NotFound, CorruptData for what is no such file.
  explicit SavedState(const std::filesystem::path& file);
  [[nodiscard]] std::span<const char> data(const meshstage::SafetensorsEntry& entry) const {
    return std::span(bytes).subspan(index.data_begin() + entry.begin, entry.end - entry.begin);
  }
};

}  // namespace trainer
