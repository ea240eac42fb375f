#pragma once
#include <optional>
#include <vector>

namespace meshstage::tree {

/// The control tree over ranks 0..world_size-1 is a binary heap: rank 0 is the root, and a path to
/// the root has at most log2(world_size) links. All functions here are pure functions of rank and
/// size.
[[nodiscard]] constexpr std::optional<int> parent(int rank) noexcept {
  if (rank <= 0) return std::nullopt;
  return (rank - 1) / 2;
}

/// The children of `rank`, ascending; empty for a leaf.
[[nodiscard]] inline std::vector<int> children(int rank, int world_size) {
  std::vector<int> result;
  // In 64 bits, so that a rank near the largest int does not wrap.
  for (long long child = 2LL * rank + 1; child <= 2LL * rank + 2; ++child) {
    if (child < world_size) result.push_back(static_cast<int>(child));
  }
  return result;
}

/// Parent and children of `rank`, ascending.
[[nodiscard]] inline std::vector<int> neighbours(int rank, int world_size) {
  std::vector<int> result;
  if (const auto up = parent(rank)) result.push_back(*up);
  for (const int child : children(rank, world_size)) result.push_back(child);
  return result;
}

/// The neighbour of `from` on the way to `to`; `from` itself if they are equal.
[[nodiscard]] constexpr int next_hop(int from, int to) noexcept {
  int below = to;
  while (below > from) {
    const int up = (below - 1) / 2;
    if (up == from) return below;
    below = up;
  }
  return below == from ? from : (from - 1) / 2;
}

}  // namespace meshstage::tree
