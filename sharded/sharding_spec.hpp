#pragma once
#include <string>
#include <variant>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/sharded/shard.hpp>

namespace meshstage {

/// Cut along one dimension (negative counts from the end) into as many parts as there are
/// placements, by ceil(size / parts): the last may be smaller, or left out where nothing is left.
/// A rank may have several parts, or none.
struct ChunkSharding {
  int dim = 0;
  std::vector<ShardPlacement> placements;
};

/// Every shard by itself. Together they are the whole tensor, without gap and overlap.
struct EnumerableSharding {
  std::vector<ShardMetadata> shards;
};

using ShardingSpec = std::variant<ChunkSharding, EnumerableSharding>;

/// The shards that a spec makes of a tensor of this shape, in the spec's order. Throws
/// InvalidArgument for a dimension out of range, no placements, a rank outside 0..world_size-1, or
/// shards that are not the whole tensor, naming the shard.
[[nodiscard]] MESHSTAGE_API std::vector<ShardMetadata> shards_of(const ShardingSpec& spec,
                                                                 const Shape& shape,
                                                                 int world_size);

}  // namespace meshstage
