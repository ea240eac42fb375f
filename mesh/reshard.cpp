// The mesh before cuts each tensor dimension into intervals of its own; a block of the mesh after
// overlaps some of them along each dimension, and a box for each combination.
#include <algorithm>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/reshard.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {
namespace {

using Coordinate = std::vector<std::int64_t>;

void refuse_partial(const PlacedTensor& placed, const char* when) {
  for (const auto& p : placed.placements) {
    if (!p.is_partial()) continue;
    throw InvalidArgument("placements " + to_string(placed.placements) + " " + when +
                          ": a partial must be reduced, and boxes only move elements; redistribute "
                          "it to R or S(DIM) first");
  }
}

class Planner {
 public:
  Planner(const PlacedTensor& before, const PlacedTensor& after,
          std::span<const std::int64_t> shape)
      : before_(before),
        after_(after),
        from_(before.mesh.shape(), shape, before.placements),
        to_(after.mesh.shape(), shape, after.placements) {
    refuse_partial(before, "before");
    refuse_partial(after, "after");
    for (std::size_t t = 0; t < shape.size(); ++t) dims_.push_back(cut(t));
    for (std::size_t d = 0; d < before.mesh.ndim(); ++d) {
      if (from_.placements()[d].is_shard()) continue;
      replicas_ *= before.mesh.shape()[d];
      replicated_.push_back(d);
    }
  }

  /// `turn` counts receivers.
  void add(int rank, std::int64_t turn, std::vector<ReshardBox>& boxes) const {
    const auto coordinate = after_.mesh.coordinate(rank);
    if (!coordinate) {
      throw InvalidArgument("the mesh after, " + after_.mesh.to_string() + ", has no rank " +
                            std::to_string(rank));
    }
    const auto block = to_.at(*coordinate);
    if (block.empty()) return;
    // Along each dimension: the intervals that the block overlaps.
    std::vector<std::size_t> first(dims_.size()), last(dims_.size());
    for (std::size_t t = 0; t < dims_.size(); ++t) {
      const auto& parts = dims_[t];
      const auto behind = [](const Interval& i, std::int64_t at) { return i.end <= at; };
      const auto end = block.offset[t] + block.shape[t];
      first[t] = static_cast<std::size_t>(
          std::lower_bound(parts.begin(), parts.end(), block.offset[t], behind) - parts.begin());
      last[t] = first[t];
      while (last[t] < parts.size() && parts[last[t]].begin < end) ++last[t];
    }
    const auto own = before_.mesh.coordinate(rank);
    std::vector<std::size_t> at = first;
    for (;;) {
      boxes.push_back(box(rank, block, at, own, turn));
      std::size_t t = dims_.size();
      for (;;) {
        if (t == 0) return;
        --t;
        if (++at[t] < last[t]) break;
        at[t] = first[t];
      }
    }
  }

 private:
  /// Elements [begin, end) along a tensor dimension, which the ranks have whose coordinates along
  /// the mesh dimensions that cut it are these.
  struct Interval {
    std::int64_t begin = 0, end = 0;
    std::vector<std::pair<std::size_t, std::int64_t>> coordinates;
  };

  /// The non-empty intervals of a tensor dimension, ascending.
  [[nodiscard]] std::vector<Interval> cut(std::size_t t) const {
    std::vector<std::size_t> cutting;
    for (std::size_t d = 0; d < from_.mesh_shape().size(); ++d) {
      if (from_.placements()[d].is_shard(static_cast<int>(t))) cutting.push_back(d);
    }
    std::vector<Interval> intervals;
    Coordinate coordinate(from_.mesh_shape().size(), 0);
    LocalShard shard;
    for (;;) {
      from_.at(coordinate, shard);
      if (shard.shape[t] > 0) {
        auto& interval =
            intervals.emplace_back(Interval{shard.offset[t], shard.offset[t] + shard.shape[t], {}});
        for (const auto d : cutting) interval.coordinates.emplace_back(d, coordinate[d]);
      }
      std::size_t i = cutting.size();
      for (;;) {
        if (i == 0) {
          std::sort(intervals.begin(), intervals.end(),
                    [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
          return intervals;
        }
        const auto d = cutting[--i];
        if (++coordinate[d] < from_.mesh_shape()[d]) break;
        coordinate[d] = 0;
      }
    }
  }

  [[nodiscard]] ReshardBox box(int rank, const LocalShard& block,
                               const std::vector<std::size_t>& at,
                               const std::optional<Coordinate>& own, std::int64_t turn) const {
    ReshardBox result;
    result.to = rank;
    Coordinate sender(before_.mesh.ndim(), 0);
    for (std::size_t t = 0; t < at.size(); ++t) {
      const auto& interval = dims_[t][at[t]];
      const auto begin = std::max(interval.begin, block.offset[t]);
      result.offset.push_back(begin);
      result.shape.push_back(std::min(interval.end, block.offset[t] + block.shape[t]) - begin);
      for (const auto& [d, c] : interval.coordinates) sender[d] = c;
    }
    bool itself = own.has_value();
    for (std::size_t d = 0; itself && d < sender.size(); ++d)
      itself = !from_.placements()[d].is_shard() || (*own)[d] == sender[d];
    if (itself) {
      result.from = rank;
      return result;
    }
    auto replica = turn % replicas_;
    for (std::size_t i = replicated_.size(); i-- > 0;) {
      const auto size = before_.mesh.shape()[replicated_[i]];
      sender[replicated_[i]] = replica % size;
      replica /= size;
    }
    result.from = before_.mesh.rank_at(sender);
    return result;
  }

  const PlacedTensor& before_;
  const PlacedTensor& after_;
  const Layout from_, to_;
  std::vector<std::vector<Interval>> dims_;  // by tensor dimension
  std::vector<std::size_t> replicated_;      // mesh dimensions before that do not cut
  std::int64_t replicas_ = 1;
};

}  // namespace

std::vector<ReshardBox> plan_reshard(const PlacedTensor& before, const PlacedTensor& after,
                                     std::span<const std::int64_t> tensor_shape) {
  const Planner planner(before, after, tensor_shape);
  std::vector<ReshardBox> boxes;
  for (std::int64_t i = 0; i < after.mesh.size(); ++i) planner.add(after.mesh.rank_at(i), i, boxes);
  return boxes;
}

std::vector<ReshardBox> plan_reshard_to(const PlacedTensor& before, const PlacedTensor& after,
                                        std::span<const std::int64_t> tensor_shape, int rank) {
  const Planner planner(before, after, tensor_shape);
  std::vector<ReshardBox> boxes;
  planner.add(rank, after.mesh.index_of(rank).value_or(0), boxes);
  return boxes;
}

}  // namespace meshstage
