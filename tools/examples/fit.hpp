#pragma once
#include <cstdint>
#include <cstdio>
#include <span>

#include <meshstage/core/tensor/tensor.hpp>

/// What the examples train: eight weights of a linear function, by gradient descent with momentum.
/// Only here so that there is something to train; nothing in it knows of meshstage but the tensors.
class Fit {
 public:
  static constexpr int kWeights = 8;

  meshstage::Tensor weights = meshstage::Tensor::zeros({kWeights}, meshstage::DType::kF32);
  meshstage::Tensor momentum = meshstage::Tensor::zeros({kWeights}, meshstage::DType::kF32);

  /// Of the squared error of one example, which `rank` and `step` alone choose: a step that is
  /// trained again after a recovery gives the same bits. Reads the weights.
  void gradient(int rank, std::uint64_t step, std::span<float> into) const {
    float x[kWeights];
    float error = 0;
    std::uint64_t random = step * 1000 + static_cast<std::uint64_t>(rank);
    for (int i = 0; i < kWeights; ++i) {
      random = random * 6364136223846793005U + 1442695040888963407U;
      x[i] = static_cast<float>(random >> 40) / static_cast<float>(1 << 24) - 0.5F;
      error += x[i] * (weights.data<float>()[i] - static_cast<float>(i));
    }
    for (int i = 0; i < kWeights; ++i) into[static_cast<std::size_t>(i)] = 2 * error * x[i];
  }

  /// Changes weights and momentum.
  void update(std::span<const float> gradient) {
    update(gradient, weights.span<float>(), momentum.span<float>());
  }
  /// The same of a part of both, as long as `part` is; `gradient` begins there.
  static void update(std::span<const float> gradient, std::span<float> part,
                     std::span<float> momentum) {
    for (std::size_t i = 0; i < part.size(); ++i) {
      momentum[i] = 0.9F * momentum[i] + gradient[i];
      part[i] -= 0.1F * momentum[i];
    }
  }

  /// Every bit of the result, in one line.
  void print(std::uint64_t steps) const {
    std::printf("%llu steps:", static_cast<unsigned long long>(steps));
    for (int i = 0; i < kWeights; ++i) {
      std::printf(" %a", static_cast<double>(weights.data<float>()[i]));
    }
    std::printf("\n");
  }
};
