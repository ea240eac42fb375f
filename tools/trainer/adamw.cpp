#include "tools/trainer/adamw.hpp"

#include <cmath>
#include <cstddef>

namespace trainer {

void AdamW::update(std::uint64_t step, std::span<float> parameter, std::span<const float> gradient,
                   std::span<float> exp_avg, std::span<float> exp_avg_sq) const {
  const auto t = static_cast<double>(step);
  const auto correction1 = static_cast<float>(1 / (1 - std::pow(double{beta1}, t)));
  const auto correction2 = static_cast<float>(1 / (1 - std::pow(double{beta2}, t)));
  const float decay = 1 - learning_rate * weight_decay;
  for (std::size_t i = 0; i < parameter.size(); ++i) {
    const float g = gradient[i];
    const float m = beta1 * exp_avg[i] + (1 - beta1) * g;
    const float v = beta2 * exp_avg_sq[i] + (1 - beta2) * g * g;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    parameter[i] = decay * parameter[i] -
                   learning_rate * (m * correction1) / (std::sqrt(v * correction2) + epsilon);
  }
}

}  // namespace trainer
