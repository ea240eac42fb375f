#pragma once
#include <functional>
#include <string>
#include <vector>

#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// What ranks have in common and need not keep at their holders. The same on all ranks.
struct SharedTensors {
  /// ranks[r]: the ranks that may have tensors of rank r and keep them for it; in other failure
  /// domains than r. Links are made to them. Empty: nothing is shared.
  std::vector<std::vector<int>> ranks;
  /// The paths of the tensors in `state` which rank `owner` leaves out of its replicas because rank
  /// `at` has them byte for byte at every step; asked by both, each with its own state, which must
  /// come to the same answer; for each tensor and owner at most one `at`. Asked for each new
  /// structure, by the trainer's thread.
  std::function<std::vector<std::string>(const Value& state, int owner, int at)> paths;
};

}  // namespace meshstage
