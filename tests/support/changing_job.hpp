// A job whose number of ranks changes from start to start, in one process; its states are cut in
// all the ways that there are.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/sharded/node.hpp>

#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/watched_file_system.hpp"

namespace meshstage::test {

/// Values that no two steps, and no two elements of a tensor, have in common.
inline Tensor whole(const Shape& shape, std::uint64_t step, float salt) {
  Tensor t = Tensor::arange<float>(element_count(shape)).view(shape);
  for (float& x : t.span<float>()) x = x / 64 + salt + static_cast<float>(step) * 100;
  return t;
}

inline Tensor part(const Tensor& of, const Box& box, bool transposed = false) {
  const Tensor view = view_of(of, {of.shape(), Shape(of.dim(), 0)}, box);
  return transposed ? view.transpose(0, 1).clone().transpose(0, 1) : view.clone();
}

inline Value on_mesh(const Tensor& of, const DeviceMesh& mesh, const char* placements, int rank,
                     bool transposed = false) {
  const DTensorSpec spec{mesh, parse_placements(placements), of.dtype(), of.shape(),
                         contiguous_strides(of.shape())};
  const Box box = local_shard(mesh, rank, of.shape(), spec.placements);
  return dtensor::to_value(DTensor::from_spec(part(of, box, transposed), spec, rank));
}

/// The state of one of `world` ranks at a step: cut in all the ways that there are.
inline Dict state_at(int rank, int world, std::uint64_t step) {
  const auto row = DeviceMesh::from_shape({world});
  const auto grid =
      world % 2 == 0 ? DeviceMesh::from_shape({2, world / 2}) : DeviceMesh::from_shape({world, 1});
  const Value tied = on_mesh(whole({13, 7}, step, 1), row, "S(0)", rank);
  const Tensor shards = whole({10, 3}, step, 2);
  std::vector<ShardPlacement> places;
  for (int r = world; r-- > 0;) places.push_back({r, kCpu});  // the last rank has the first
  const auto metadata = shards_of(ChunkSharding{0, places}, shards.shape(), world);
  std::vector<Tensor> local;
  for (const auto& s : metadata) {
    if (s.placement.rank == rank) local.push_back(part(shards, {s.sizes, s.offsets}));
  }
  const auto sharded =
      ShardedTensor::from_metadata(local, {shards.shape(), shards.dtype(), metadata}, rank);
  return Dict{{"wte", tied},
              {"head", tied},
              {"replicated", on_mesh(whole({4, 5}, step, 3), grid, "R,S(1)", rank)},
              {"twice", on_mesh(whole({9, 2}, step, 4), grid, "S(0),S(0)", rank, true)},
              {"shards", sharded::to_value(sharded)},
              {"bias", whole({5}, step, 5)},
              {"table", whole({30'000}, step, 7)},
              {"lists", List{Tuple{0.5, "adamw"}, whole({}, step, 6)}},
              {"step", static_cast<std::int64_t>(step)},
              {"seen", static_cast<std::int64_t>(rank == 0 ? step : 0)}};
}

/// For state_at().
inline ReshardOptions any_number() {
  ReshardOptions reshard;
  dtensor::register_boxes(reshard.readers);
  sharded::register_boxes(reshard.readers);
  reshard.plain = [](const std::string& path) {
    return path == "seen" ? PlainKind::kSummed : PlainKind::kSame;
  };
  return reshard;
}

/// A job whose number of ranks changes from start to start. Disk, vaults and Store stay.
class ChangingJob {
 public:
  /// Each start has connections of its own.
  void start(int world, const std::function<void(CheckpointerOptions, int rank)>& body) {
    const auto fabric = std::make_shared<InProcessFabric>();
    all_good(
        run_ranks(all_ranks(world), [&](int rank) { body(options(rank, world, *fabric), rank); }));
  }
  CheckpointerOptions options(int rank, int world, InProcessFabric& fabric) {
    auto o = job.options(rank);
    o.environment->world_size = o.environment->local_world_size = world;
    o.transport = fabric.attach(rank);
    o.any_world = any_number();
    change(o, world);
    return o;
  }
  /// Of each file on disk: "step 20 of 3".
  std::vector<std::string> files() {
    std::vector<std::string> names;
    for (const auto& image : list_images(job.disk(), "/disk", InProcessJob::kName)) {
      const auto& n = image.name;
      if (n.holder) continue;
      names.push_back("step " + std::to_string(n.id.step) + " of " + std::to_string(n.world_size));
    }
    return names;
  }

  /// Changes the options of each rank of so many.
  std::function<void(CheckpointerOptions&, int world)> change = [](CheckpointerOptions&, int) {};
  std::atomic<std::uint64_t> borrowed{
      0};  ///< Bytes that replicas left out, where a test counts them.
  InProcessJob job{1};
};

/// Its assign() throws while `armed`, as a process might die there.
class Mine final : public Node {
 public:
  Mine(Value count, std::atomic<bool>* armed) : count_(std::move(count)), armed_(armed) {}
  [[nodiscard]] std::string type_name() const override { return "test.Mine"; }
  [[nodiscard]] std::vector<Child> children() const override { return {{"count", count_}}; }
  [[nodiscard]] NodePtr rebuild(std::vector<Value> children) const override {
    return std::make_shared<Mine>(children[0], armed_);
  }
  bool assign(const std::vector<Value>& children) override {
    if (armed_ != nullptr && armed_->exchange(false)) throw std::runtime_error("the mine went off");
    count_ = children[0];
    return true;
  }

 private:
  Value count_;
  std::atomic<bool>* armed_;
};

/// Recovers into a state of other values; throws unless it is what slicing gives.
inline Recovered recover_exactly(Checkpointer& ckpt, std::uint64_t step) {
  const int rank = ckpt.rank(), world = ckpt.world_size();
  Dict state = state_at(rank, world, 777'777);
  const auto recovered = ckpt.recover(state);
  require(recovered.step == step, "step " + std::to_string(recovered.step));
  const auto wrong = difference(state, state_at(rank, world, step));
  require(wrong.empty(), wrong);
  return recovered;
}

/// Begins anew, or goes on from step `from`.
inline void begin_or_go_on(Checkpointer& ckpt, std::uint64_t from) {
  if (from != 0) {
    (void)recover_exactly(ckpt, from);
    return;
  }
  Dict state = state_at(ckpt.rank(), ckpt.world_size(), 0);
  (void)ckpt.recover(state);
}

inline void stage_exactly(Checkpointer& ckpt, std::uint64_t step) {
  const Dict state = state_at(ckpt.rank(), ckpt.world_size(), step);
  auto staging = ckpt.stage(state, step);
  require(staging.outcome().get(Deadline::after(std::chrono::seconds(20))) == Outcome::kComplete,
          "step " + std::to_string(step) + " is not complete");
}

}  // namespace meshstage::test
