// Shards of a tensor whose element at row-major place i is i.
#pragma once
#include <random>
#include <vector>

#include <meshstage/sharded/sharded_tensor.hpp>

#include "tests/support/counted.hpp"

namespace meshstage::test {

inline Tensor part_of(const Tensor& whole, const ShardMetadata& shard) {
  Tensor part = whole;
  for (std::size_t d = 0; d < shard.sizes.size(); ++d) {
    part = part.narrow(static_cast<std::int64_t>(d), shard.offsets[d], shard.sizes[d]);
  }
  return part.clone();
}

/// Those that are placed on `rank`, with their elements.
inline std::vector<Shard> shards_at(const std::vector<ShardMetadata>& all, const Shape& shape,
                                    int rank) {
  std::vector<Shard> shards;
  for (const auto& s : all) {
    if (s.placement.rank == rank) shards.push_back({part_of(counted(shape), s), s});
  }
  return shards;
}

/// Cuts a tensor at random places into blocks on random ranks: a seed gives the same ones anywhere.
inline std::vector<ShardMetadata> random_shards(std::mt19937& engine, const Shape& shape,
                                                int ranks) {
  std::vector<ShardMetadata> done;
  std::vector<ShardMetadata> open{{Shape(shape.size(), 0), shape, {}}};
  while (!open.empty()) {
    ShardMetadata block = open.back();
    open.pop_back();
    const std::size_t d = shape.empty() ? 0 : engine() % shape.size();
    if (!shape.empty() && block.sizes[d] > 1 && engine() % 4 != 0) {
      const auto at =
          static_cast<std::int64_t>(1 + engine() % static_cast<std::uint64_t>(block.sizes[d] - 1));
      ShardMetadata second = block;
      block.sizes[d] = at;
      second.offsets[d] += at;
      second.sizes[d] -= at;
      open.push_back(block);
      open.push_back(second);
    } else {
      block.placement.rank = static_cast<int>(engine() % static_cast<unsigned>(ranks));
      done.push_back(block);
    }
  }
  return done;
}

}  // namespace meshstage::test
