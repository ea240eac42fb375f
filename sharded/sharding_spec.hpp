#pragma once
#include <string>
#include <variant>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/sharded/shard.hpp>

namespace meshstage {

/// Cuts a tensor along one dimension (negative counts from the end) into as many parts as there are
/// placements, of ceil(size / parts) each. The last parts may be smaller; a part without elements
/// is left out. A rank may have several parts, or none.
struct ChunkSharding {
  int dim = 0;
  std::vector<ShardPlacement> placements;
};

/// Lists every shard. Together they must be the whole tensor, without gap and overlap.
struct EnumerableSharding {
  std::vector<ShardMetadata> shards;
};

using ShardingSpec = std::variant<ChunkSharding, EnumerableSharding>;

/// The shards that a spec makes of a tensor of this shape, in the spec's order. Throws
/// InvalidArgument for a dimension out of range, no placements, a rank outside 0..world_size-1, or
/// shards that do not make up the whole tensor (naming the shard).
[[nodiscard]] MESHSTAGE_API std::vector<ShardMetadata> shards_of(const ShardingSpec& spec,
                                                                 const Shape& shape,
                                                                 int world_size);

}  // namespace meshstage
