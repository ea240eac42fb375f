// What a trainer of the in-process tests trains, and the steps it stages.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/support/require.hpp"

namespace meshstage::test {

/// A rank's state at a step: two tensors of which one is seen twice (a tied head), and a scalar.
inline Dict state_of(int rank, std::uint64_t step, std::int64_t elements = 5000) {
  const auto fill = [&](Tensor& tensor, float bias) {
    float* data = tensor.data<float>();
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      data[i] = bias + static_cast<float>(rank * 1000) + static_cast<float>(step) +
                static_cast<float>(i) / 1024.0F;
    }
  };
  Tensor weight = Tensor::empty({elements / 50, 50}, DType::kF32);
  Tensor bias = Tensor::empty({elements}, DType::kF32);
  fill(weight, 0.25F);
  fill(bias, 0.5F);
  return Dict{{"model", Dict{{"weight", weight}, {"head", weight}, {"bias", bias}}},
              {"step", static_cast<std::int64_t>(step)}};
}

/// Where two states differ, "" if nowhere.
inline std::string difference(const Dict& a, const Dict& b) {
  const auto found = compare(Value(a), Value(b));
  return found ? found->describe() : "";
}

/// Stages one step and waits for what becomes of it.
inline Outcome stage_one(Checkpointer& ckpt, std::uint64_t step,
                         std::chrono::seconds patience = std::chrono::seconds(20)) {
  auto staging = ckpt.stage(state_of(ckpt.rank(), step), step);
  staging.staged().wait();
  return staging.outcome().get(Deadline::after(patience));
}

/// Stages `steps` one after the other; each must be complete.
inline void stage_all(Checkpointer& ckpt, const std::vector<std::uint64_t>& steps,
                      std::chrono::seconds patience = std::chrono::seconds(20)) {
  for (const auto step : steps) {
    const auto outcome = stage_one(ckpt, step, patience);
    require(outcome == Outcome::kComplete,
            "step " + std::to_string(step) + " " + std::string(to_string(outcome)));
  }
}

/// Recovers into a fresh state; throws unless it is this rank's of the recovered step, bit for bit.
inline Recovered recover_fresh(Checkpointer& ckpt) {
  Dict state = state_of(ckpt.rank(), 0);
  const auto recovered = ckpt.recover(state);
  const auto different = difference(state, state_of(ckpt.rank(), recovered.step));
  require(different.empty(), "recovered another state: " + different);
  return recovered;
}

/// The same, of that step.
inline Recovered recover_to(Checkpointer& ckpt, std::uint64_t step) {
  const auto recovered = recover_fresh(ckpt);
  require(recovered.step == step, "recovered step " + std::to_string(recovered.step) +
                                      " instead of " + std::to_string(step));
  return recovered;
}

}  // namespace meshstage::test
