// A job whose ranks stage sharded states, and look at what they hold of each other.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/mesh/mesh_groups.hpp>

#include "tests/support/in_process_job.hpp"
#include "tests/support/rank_errors.hpp"

namespace meshstage::test {

/// The state of a rank at a step; made by that rank, with its group, or by the test to compare.
using StateOf = std::function<Dict(int rank, std::uint64_t step)>;
using RegistryOf = std::function<NodeRegistry(int rank)>;

/// Numbers from `first` on, all different.
inline Tensor ramp(const Shape& shape, double first) {
  const auto tensor = Tensor::empty(shape, DType::kF32);
  float* data = tensor.data<float>();
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    data[i] = static_cast<float>(first) + static_cast<float>(i) / 1024.0F;
  }
  return tensor;
}

inline Deadline in_time() { return Deadline::after(std::chrono::seconds(20)); }

inline std::string difference(const Value& a, const Value& b) {
  const auto found = compare(a, b);
  return found ? found->path + ": " + found->describe() : "";
}

inline void stage_and_wait(Checkpointer& ckpt, const Dict& state, std::uint64_t step) {
  auto staging = ckpt.stage(state, step);
  const auto outcome = staging.outcome().get(in_time());
  require(outcome == Outcome::kComplete,
          "step " + std::to_string(step) + " " + std::string(to_string(outcome)));
}

/// Stages `steps` one after the other on every rank; element r is what rank r then holds, one
/// Replica for each ward. Throws the first error of any rank.
inline std::vector<std::vector<Replica>> stage_on_all(
    InProcessJob& job, const StateOf& state_of, const RegistryOf& registry,
    const std::vector<std::uint64_t>& steps,
    const std::function<void(CheckpointerOptions&)>& options = {}) {
  std::vector<std::vector<Replica>> held(static_cast<std::size_t>(job.world_size()));
  // To the others a rank that goes without finish() is lost: all stay until each has looked.
  std::vector<std::unique_ptr<Checkpointer>> stay(held.size());
  const auto errors = run_ranks(all_ranks(job.world_size()), [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    auto o = job.options(rank);
    if (options) options(o);
    stay[r] = std::make_unique<Checkpointer>(o);
    Checkpointer& ckpt = *stay[r];
    Dict state = state_of(rank, 0);
    (void)ckpt.recover(state);
    for (const auto step : steps) stage_and_wait(ckpt, state_of(rank, step), step);
    for (const int ward : ckpt.wards()) held[r].push_back(ckpt.held(ward, registry(rank)));
  });
  for (const auto& error : errors) {
    require(error.empty(), error);
  }
  return held;
}

/// All ranks start anew and recover; element r is how rank r's state differs from `expected`.
inline std::vector<std::string> recover_on_all(
    InProcessJob& job, const StateOf& state_of, std::uint64_t step, std::vector<Source>& sources,
    const std::function<void(CheckpointerOptions&)>& options = {}) {
  std::vector<std::string> different(static_cast<std::size_t>(job.world_size()));
  sources.resize(different.size());
  const auto errors = run_ranks(all_ranks(job.world_size()), [&](int rank) {
    auto o = job.options(rank);
    if (options) options(o);
    Checkpointer ckpt(o);
    Dict state = state_of(rank, 0);
    const auto recovered = ckpt.recover(state);
    const auto r = static_cast<std::size_t>(rank);
    sources[r] = recovered.source;
    different[r] = difference(state, state_of(rank, step));
    if (recovered.step != step) different[r] += " step " + std::to_string(recovered.step);
    ckpt.finish();
  });
  for (const auto& error : errors) {
    require(error.empty(), error);
  }
  return different;
}

}  // namespace meshstage::test
