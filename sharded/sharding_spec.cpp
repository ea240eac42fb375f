#include <meshstage/sharded/sharding_spec.hpp>

#include <algorithm>

#include <meshstage/core/error/error.hpp>
#include <meshstage/sharded/check_impl.hpp>

namespace meshstage {
namespace {

std::vector<ShardMetadata> chunks_of(const ChunkSharding& spec, const Shape& shape) {
  const auto dims = static_cast<int>(shape.size());
  const int dim = spec.dim < 0 ? spec.dim + dims : spec.dim;
  if (dim < 0 || dim >= dims) {
    throw InvalidArgument("a tensor " + to_string(shape) + " cannot be cut along dimension " +
                          std::to_string(spec.dim) + ": it has " + std::to_string(dims));
  }
  if (spec.placements.empty()) {
    throw InvalidArgument("a chunked sharding needs a placement for each part, and has none");
  }
  const auto d = static_cast<std::size_t>(dim);
  const auto parts = static_cast<std::int64_t>(spec.placements.size());
  const std::int64_t part = (shape[d] + parts - 1) / parts;
  std::vector<ShardMetadata> shards;
  std::int64_t start = 0;
  for (const ShardPlacement& placement : spec.placements) {
    // A tensor without elements is one empty shard.
    if (start >= shape[d] && !shards.empty()) break;
    ShardMetadata& s = shards.emplace_back(ShardMetadata{Shape(shape.size(), 0), shape, placement});
    s.offsets[d] = start;
    s.sizes[d] = std::min(part, shape[d] - start);
    start += part;
  }
  return shards;
}

}  // namespace

std::vector<ShardMetadata> shards_of(const ShardingSpec& spec, const Shape& shape, int world_size) {
  (void)element_count(shape);  // throws for one that is none
  const auto* chunks = std::get_if<ChunkSharding>(&spec);
  auto shards = chunks ? chunks_of(*chunks, shape) : std::get<EnumerableSharding>(spec).shards;
  const auto name = [](std::size_t i) { return "shard " + std::to_string(i); };
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const int rank = shards[i].placement.rank;
    if (rank >= 0 && rank < world_size) continue;
    throw make_error<InvalidArgument>(name(i) + " (" + to_string(shards[i]) +
                                          ") is placed on a rank that a group of " +
                                          std::to_string(world_size) + " does not have",
                                      rank);
  }
  sharded::check_cover(shards, shape, name);
  return shards;
}

}  // namespace meshstage
