#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/sharded/check_impl.hpp>

namespace meshstage::sharded {
namespace {

std::int64_t end_of(const ShardMetadata& shard, std::size_t d) {
  return shard.offsets[d] + shard.sizes[d];
}

bool empty(const ShardMetadata& shard) {
  return std::find(shard.sizes.begin(), shard.sizes.end(), 0) != shard.sizes.end();
}

bool have_common(const ShardMetadata& a, const ShardMetadata& b) {
  for (std::size_t d = 0; d < a.sizes.size(); ++d) {
    if (a.offsets[d] >= end_of(b, d) || b.offsets[d] >= end_of(a, d)) return false;
  }
  return true;
}

std::int64_t numel_from(const Shape& sizes, std::size_t d) {
  return std::accumulate(sizes.begin() + static_cast<std::ptrdiff_t>(d), sizes.end(),
                         std::int64_t{1}, std::multiplies<>());
}

/// The first element that none of `shards` has, in the dimensions from d on: they all have the
/// index that was fixed in the dimensions before. Slabs that are full by count are passed over.
bool find_gap(std::vector<const ShardMetadata*> shards, const Shape& whole, std::size_t d,
              Shape& element) {
  if (d == whole.size()) return shards.empty();
  std::set<std::int64_t> cuts{0};
  for (const auto* s : shards) {
    cuts.insert(s->offsets[d]);
    cuts.insert(end_of(*s, d));
  }
  for (const std::int64_t cut : cuts) {
    if (cut >= whole[d]) break;
    std::vector<const ShardMetadata*> here;
    std::int64_t elements = 0;
    for (const auto* s : shards) {
      if (s->offsets[d] > cut || end_of(*s, d) <= cut) continue;
      here.push_back(s);
      elements += numel_from(s->sizes, d + 1);
    }
    if (elements == numel_from(whole, d + 1)) continue;
    element[d] = cut;
    return find_gap(std::move(here), whole, d + 1, element);
  }
  return false;
}

}  // namespace

std::optional<Problem> outside(std::span<const ShardMetadata> shards, const Shape& whole) {
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const ShardMetadata& s = shards[i];
    if (s.sizes.size() != whole.size() || s.offsets.size() != whole.size()) {
      return Problem{i, "has another number of dimensions than the tensor " + to_string(whole)};
    }
    for (std::size_t d = 0; d < whole.size(); ++d) {
      // The difference cannot wrap: neither is negative by then.
      if (s.sizes[d] < 0 || s.offsets[d] < 0 || s.offsets[d] > whole[d] ||
          s.sizes[d] > whole[d] - s.offsets[d]) {
        return Problem{i, "does not lie within the tensor " + to_string(whole) + ": dimension " +
                              std::to_string(d)};
      }
    }
  }
  return {};
}

std::optional<Problem> overlap(std::span<const ShardMetadata> shards) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    if (!empty(shards[i])) order.push_back(i);
  }
  if (order.size() < 2) return {};
  const std::size_t dims = shards[order.front()].sizes.size();
  if (dims == 0) return Problem{order[1], "overlaps", order[0]};
  // Sweep along the dimension that is cut most: few shards are open at a time.
  std::size_t sweep = 0;
  std::size_t most = 0;
  for (std::size_t d = 0; d < dims; ++d) {
    std::set<std::int64_t> begins;
    for (const std::size_t i : order) begins.insert(shards[i].offsets[d]);
    if (begins.size() > most) {
      most = begins.size();
      sweep = d;
    }
  }
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(shards[a].offsets[sweep], a) < std::pair(shards[b].offsets[sweep], b);
  });
  std::vector<std::size_t> open;
  for (const std::size_t i : order) {
    std::erase_if(
        open, [&](std::size_t o) { return end_of(shards[o], sweep) <= shards[i].offsets[sweep]; });
    for (const std::size_t o : open) {
      if (have_common(shards[o], shards[i])) {
        return Problem{std::max(i, o), "overlaps", std::min(i, o)};
      }
    }
    open.push_back(i);
  }
  return {};
}

std::optional<Shape> gap(std::span<const ShardMetadata> shards, const Shape& whole) {
  if (element_count(whole) == 0) return {};
  std::vector<const ShardMetadata*> all;
  std::int64_t elements = 0;
  for (const auto& s : shards) {
    if (empty(s)) continue;
    all.push_back(&s);
    elements += numel_from(s.sizes, 0);
  }
  // They do not overlap, so this cannot wrap, and it says all.
  if (elements == element_count(whole)) return {};
  Shape element(whole.size(), 0);
  find_gap(std::move(all), whole, 0, element);
  return element;
}

std::size_t beside(std::span<const ShardMetadata> shards, const Shape& element) {
  for (std::size_t d = element.size(); d-- > 0;) {
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const ShardMetadata& s = shards[i];
      bool before = !empty(s);
      for (std::size_t e = 0; e < element.size(); ++e) {
        const std::int64_t at = element[e] - (e == d ? 1 : 0);
        before = before && s.offsets[e] <= at && at < end_of(s, e);
      }
      if (before) return i;
    }
  }
  std::size_t first = 0;
  for (std::size_t i = 1; i < shards.size(); ++i) {
    if (shards[i].offsets < shards[first].offsets) first = i;
  }
  return first;
}

}  // namespace meshstage::sharded
