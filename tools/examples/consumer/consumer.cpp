// A trainer in a project of its own, whose state has a random stream and a number besides its
// weights, and which ends in order at SIGTERM. CMakeLists.txt beside it finds the installed
// meshstage. usage: consumer [DIRECTORY [STEPS]]
#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <span>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>

namespace ms = meshstage;

constexpr std::size_t kWeights = 8;

/// The next number of a stream, between -0.5 and 0.5.
float draw(std::uint64_t& stream) {
  stream = stream * 6364136223846793005U + 1442695040888963407U;
  return static_cast<float>(stream >> 40) / static_cast<float>(1 << 24) - 0.5F;
}

void train(ms::CheckpointerOptions options, std::uint64_t steps) {
  ms::Checkpointer ckpt(std::move(options));
  const auto seed = 1000 + static_cast<std::uint64_t>(ckpt.rank());
  const auto stream = ms::Tensor::from_vector<std::uint64_t>({seed}, {1});
  const auto weights = ms::Tensor::zeros({kWeights}, ms::DType::kF32);
  ms::Dict state{{"weights", weights}, {"stream", stream}, {"rate", 0.5}};

  // Without RunOptions::overlap the body may change the state at once: it has been copied.
  const auto body = [&](ms::RunStep& step) {
    const auto w = weights.span<float>();
    std::array<float, kWeights> gradient{};
    float error = 0;
    for (std::size_t i = 0; i < kWeights; ++i) {
      gradient[i] = draw(*stream.data<std::uint64_t>());
      error += gradient[i] * (w[i] - static_cast<float>(i));
    }
    for (float& g : gradient) g *= 2 * error;
    ms::collectives::all_reduce(step.group(), std::span<float>(gradient),
                                ms::collectives::ReduceOp::kAvg);
    // A number is read from the state, because a recovery puts it there.
    const double rate = state.at("rate").as<double>();
    for (std::size_t i = 0; i < kWeights; ++i) w[i] -= static_cast<float>(rate) * gradient[i];
    state.set("rate", rate * 0.999);
  };
  ms::RunOptions run{.stage_every = 5, .on_terminate = true};
  run.recovered = [&](const ms::Recovered& from) {
    if (from.step > 0) std::cerr << "rank " << ckpt.rank() << ": from step " << from.step << "\n";
  };
  steps = ckpt.run(state, steps, body, run);  // fewer after SIGTERM

  std::printf("%llu steps:", static_cast<unsigned long long>(steps));
  for (const float w : weights.span<float>()) std::printf(" %a", static_cast<double>(w));
  std::printf("\n");
}

int main(int argc, char** argv) try {
  train({.job = "consumer", .directory = argc > 1 ? argv[1] : "ckpt"},
        argc > 2 ? std::stoull(argv[2]) : 100);
  return 0;
} catch (const std::exception& e) {
  std::cerr << e.what() << "\n";
  return 1;
}
