// What four ranks stage whose states have nodes: nested dicts, DTensors, ShardedTensors.
#pragma once
#include <cstdint>
#include <vector>

#include <meshstage/dtensor/node.hpp>
#include <meshstage/sharded/node.hpp>

#include "tests/nodes_replicated/sharded_job.hpp"
#include "tests/sharded/shards.hpp"

namespace meshstage::test {

inline Dict nested_state(int rank, std::uint64_t step) {
  const double first = 1000.0 * rank + static_cast<double>(step);
  const auto weight = ramp({40, 30}, first);
  return Dict{
      {"model",
       Dict{{"layers", List{Dict{{"weight", weight}, {"bias", ramp({30}, first + 0.5)}},
                            Dict{{"weight", weight.transpose(0, 1)}, {"bias", ramp({0}, 0)}}}},
            {"names", List{"a.b", "c", rank}}}},
      {"optimizer", Dict{{"lr", 0.1 + rank}, {"groups", Dict{{3, ramp({7, 3}, -first)}}}}},
      {"step", static_cast<std::int64_t>(step)},
      {"rank", rank}};
}

inline const DeviceMesh& mesh() {
  static const DeviceMesh kMesh = DeviceMesh::from_shape({2, 2}, {"dp", "tp"});
  return kMesh;
}

// Shards, a replica, both at once, and plain values beside them.
inline Dict dtensor_state(int rank, std::uint64_t step) {
  const auto from = [&](const Tensor& whole, const char* placements) {
    return dtensor::to_value(DTensor::from_full(whole, mesh(), rank, parse_placements(placements)));
  };
  const auto s = static_cast<double>(step);
  const auto both = from(ramp({9, 5}, 100 + s), "R,S(1)");
  return Dict{{"sharded", from(ramp({13, 7}, s), "S(0),S(1)")},
              {"replicated", from(ramp({6, 5}, 50 + s), "R,R")},
              {"both", both},
              {"tied", both},
              {"empty", from(ramp({1, 4}, s), "S(0),S(0)")},
              {"plain", ramp({3}, rank)},
              {"scalar", 7.5 + s},
              {"step", static_cast<std::int64_t>(step)}};
}

// Two shards, one, none, one: of a tensor of 6 by 4, on GPUs by name.
inline const Shape kWhole{6, 4};
inline const std::vector<ShardMetadata> kShards{{{0, 0}, {2, 4}, {0, {DeviceType::kCuda, 1}}},
                                                {{2, 0}, {1, 4}, {1, kCpu}},
                                                {{3, 0}, {2, 4}, {0, {DeviceType::kCuda, 1}}},
                                                {{5, 0}, {1, 4}, {3, {DeviceType::kCuda, 0}}}};

inline Dict sharded_state(int rank, std::uint64_t step) {
  std::vector<Tensor> tensors;
  for (const auto& shard : shards_at(kShards, kWhole, rank)) {
    float* data = shard.tensor.data<float>();
    for (std::int64_t i = 0; i < shard.tensor.numel(); ++i) data[i] += static_cast<float>(step);
    tensors.push_back(shard.tensor);
  }
  return Dict{{"embedding", sharded::to_value(ShardedTensor::from_metadata(
                                tensors, {kWhole, DType::kF32, kShards}, rank))},
              {"step", static_cast<std::int64_t>(step)}};
}

inline NodeRegistry no_types(int) { return {}; }
inline NodeRegistry dtensors(int) {
  NodeRegistry registry;
  dtensor::register_nodes(registry, mesh());
  return registry;
}
inline NodeRegistry sharded_tensors(int rank) {
  NodeRegistry registry;
  sharded::register_nodes(registry, rank);
  return registry;
}

}  // namespace meshstage::test
