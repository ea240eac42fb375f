#include <algorithm>
#include <map>
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

// So many overlapping shards are enough to tell which is wrong.
constexpr std::size_t kEnough = 64;

std::size_t alike(std::span<const ShardMetadata> shards, std::size_t i) {
  return static_cast<std::size_t>(
      std::count_if(shards.begin(), shards.end(),
                    [&](const ShardMetadata& s) { return s.sizes == shards[i].sizes; }));
}

/// Which of two shards that cannot both be right is more likely wrong: the one that overlaps more
/// others, else the one whose sizes fewer shards have, else the later.
std::size_t suspect(std::span<const ShardMetadata> shards, std::size_t a, std::size_t overlaps_a,
                    std::size_t b, std::size_t overlaps_b) {
  if (overlaps_a != overlaps_b) return overlaps_a > overlaps_b ? a : b;
  const auto like_a = alike(shards, a), like_b = alike(shards, b);
  if (like_a != like_b) return like_a < like_b ? a : b;
  return std::max(a, b);
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
  std::optional<std::pair<std::size_t, std::size_t>> found;
  std::map<std::size_t, std::size_t> overlaps;  // how many others each overlaps
  for (const std::size_t i : order) {
    std::erase_if(
        open, [&](std::size_t o) { return end_of(shards[o], sweep) <= shards[i].offsets[sweep]; });
    for (const std::size_t o : open) {
      if (!have_common(shards[o], shards[i])) continue;
      if (!found) found = {o, i};
      ++overlaps[o];
      ++overlaps[i];
    }
    if (overlaps.size() > kEnough) break;
    open.push_back(i);
  }
  if (!found) return {};
  const auto [a, b] = *found;
  const bool first = suspect(shards, a, overlaps[a], b, overlaps[b]) == a;
  return Problem{first ? a : b, "overlaps", first ? b : a};
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
  // The shard that has the element before the missing one along a dimension.
  const auto shard_before = [&](std::size_t d) -> std::optional<std::size_t> {
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const ShardMetadata& s = shards[i];
      bool has = !empty(s);
      for (std::size_t e = 0; e < element.size(); ++e) {
        const std::int64_t at = element[e] - (e == d ? 1 : 0);
        has = has && s.offsets[e] <= at && at < end_of(s, e);
      }
      if (has) return i;
    }
    return {};
  };
  for (std::size_t d = element.size(); d-- > 0;) {
    const auto before = shard_before(d);
    // Behind the missing elements: the first that begins there.
    std::optional<std::size_t> behind;
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const ShardMetadata& s = shards[i];
      bool beyond = !empty(s) && s.offsets[d] > element[d];
      for (std::size_t e = 0; e < element.size(); ++e) {
        beyond = beyond && (e == d || (s.offsets[e] <= element[e] && element[e] < end_of(s, e)));
      }
      if (beyond && (!behind || s.offsets[d] < shards[*behind].offsets[d])) behind = i;
    }
    // The shard that ends too early, unless the one that begins too late is the odd one.
    if (before && behind && alike(shards, *behind) < alike(shards, *before)) return *behind;
    if (before) return *before;
  }
  std::size_t first = 0;
  for (std::size_t i = 1; i < shards.size(); ++i) {
    if (shards[i].offsets < shards[first].offsets) first = i;
  }
  return first;
}

}  // namespace meshstage::sharded
