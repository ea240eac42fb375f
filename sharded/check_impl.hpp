#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/sharded/shard.hpp>

namespace meshstage::sharded {

/// Something that is wrong with shards, and whose it is: places in the list that was checked.
struct Problem {
  std::size_t shard = 0;
  std::string what;
  std::optional<std::size_t> other = {};  ///< the second of two that overlap: likely right
};

/// Sizes and offsets: as many as the whole has, none negative, within the whole.
[[nodiscard]] std::optional<Problem> outside(std::span<const ShardMetadata> shards,
                                             const Shape& whole);
/// Two shards that have an element in common. They lie within the whole.
[[nodiscard]] std::optional<Problem> overlap(std::span<const ShardMetadata> shards);
/// The first element, in row-major order, that no shard has; nothing if there is none. The shards
/// lie within the whole and do not overlap.
[[nodiscard]] std::optional<Shape> gap(std::span<const ShardMetadata> shards, const Shape& whole);
/// The shard that is likely wrong about that element: one that ends before it or begins behind it,
/// the one with the less common sizes of the two. There is one.
[[nodiscard]] std::size_t beside(std::span<const ShardMetadata> shards, const Shape& element);

/// All of these as one InvalidArgument. `name(i)` says which shard i is ("shard 0 of rank 2"); the
/// error's rank is that of its placement.
template <class Name>
void check_cover(std::span<const ShardMetadata> shards, const Shape& whole, Name&& name) {
  const auto fail = [&](std::size_t i, const std::string& what) {
    throw make_error<InvalidArgument>(name(i) + " (" + to_string(shards[i]) + ") " + what,
                                      shards[i].placement.rank);
  };
  if (const auto p = outside(shards, whole)) fail(p->shard, p->what);
  if (const auto p = overlap(shards)) {
    fail(p->shard, "overlaps " + name(*p->other) + " (" + to_string(shards[*p->other]) + ")");
  }
  const auto hole = gap(shards, whole);
  if (!hole) return;
  if (shards.empty()) {
    throw InvalidArgument("no rank has a shard of the tensor " + to_string(whole));
  }
  fail(beside(shards, *hole), "leaves a gap: no shard has the element " + to_string(*hole) +
                                  " of the tensor " + to_string(whole));
}

}  // namespace meshstage::sharded
