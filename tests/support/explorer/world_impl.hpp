#pragma once
#include <string>

#include "tests/support/explorer/world.hpp"

/// Private to the world's sources.
namespace meshstage::explorer {

/// In a generation and taking part in it.
inline bool active(const Node& node) {
  return node.alive && (node.state.mode == Mode::kRecovering || node.state.mode == Mode::kReady);
}

/// The step that Bounds::old_job means, of one rank more.
inline constexpr ImageId kOldestStepId{1, 0};
/// The step that Bounds::old_memory means, of one rank more.
inline constexpr ImageId kOldStepId{1, 1};

/// "g1 step 2".
inline std::string name(ImageId id) {
  if (!id.exists()) return "nothing";
  return "g" + std::to_string(id.generation) + " step " + std::to_string(id.step);
}

}  // namespace meshstage::explorer
