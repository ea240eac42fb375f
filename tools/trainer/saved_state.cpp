#include "tools/trainer/saved_state.hpp"

#include <fstream>
#include <iterator>

#include <meshstage/core/error/error.hpp>

namespace trainer {

SavedState::SavedState(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw meshstage::NotFound("no rank saved its state in " + file.string());
  bytes.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  index = meshstage::SafetensorsIndex::parse(std::as_bytes(std::span(bytes)));
}

}  // namespace trainer
