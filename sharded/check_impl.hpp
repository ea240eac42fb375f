#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/sharded/shard.hpp>

namespace meshstage::sharded {

/// An error in a list of shards, with the place of the wrong shard in the list.
struct Problem {
  std::size_t shard = 0;
  std::string what;
  std::optional<std::size_t> other = {};  ///< the other of two that overlap, which is likely right
};

/// Checks that sizes and offsets have as many dimensions as the whole, are not negative, and lie
/// within the whole.
[[nodiscard]] std::optional<Problem> outside(std::span<const ShardMetadata> shards,
                                             const Shape& whole);
/// Finds two shards that have an element in common. The shards must lie within the whole.
[[nodiscard]] std::optional<Problem> overlap(std::span<const ShardMetadata> shards);
/// The first element, in row-major order, that no shard has; nothing if there is none. The shards
/// must lie within the whole and not overlap.
[[nodiscard]] std::optional<Shape> gap(std::span<const ShardMetadata> shards, const Shape& whole);
/// The shard that is likely wrong if no shard has `element`: of the shards that end before it or
/// begin behind it the one with the less common sizes. There must be a shard.
[[nodiscard]] std::size_t beside(std::span<const ShardMetadata> shards, const Shape& element);

/// Makes all these checks and throws one InvalidArgument. `name(i)` is the text for shard i ("shard
/// 0 of rank 2"); the error's rank is the rank of the shard's placement.
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
