#pragma once
#include <cstdint>
#include <span>

namespace trainer {

/// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization"), with bias correction.
struct AdamW {
  float learning_rate = 3e-3F;
  float beta1 = 0.9F;
  float beta2 = 0.99F;
  float epsilon = 1e-8F;
  float weight_decay = 0.01F;

  /// One update of a parameter and its two moments, all of one length. `step` counts from 1.
  void update(std::uint64_t step, std::span<float> parameter, std::span<const float> gradient,
              std::span<float> exp_avg, std::span<float> exp_avg_sq) const;
};

}  // namespace trainer
