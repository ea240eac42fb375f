// A LibTorch trainer that survives the death of its ranks: a data-parallel regression. Start its
// ranks with `meshstage run -n 2 -- meshstage-example-torch`, or by torchrun, mpirun or srun.
// usage: meshstage-example-torch [DIRECTORY [STEPS]]
#include <torch/torch.h>

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/interop/torch.hpp>

namespace ms = meshstage;

/// What a rank learns from: of the step and the rank alone, so that a step that is trained again
/// after a recovery gives the same bits.
torch::Tensor examples(std::uint64_t step, int rank) {
  auto generator = at::detail::createCPUGenerator(1000 * step + static_cast<std::uint64_t>(rank));
  return torch::randn({64, 16}, generator);
}

/// Averages a gradient over the ranks.
void average(ms::ProcessGroup& group, const torch::Tensor& gradient) {
  const std::span<float> values(gradient.data_ptr<float>(),
                                static_cast<std::size_t>(gradient.numel()));
  ms::collectives::all_reduce(group, values, ms::collectives::ReduceOp::kAvg);
}

void train(ms::CheckpointerOptions options, std::uint64_t steps) {
  torch::manual_seed(7);  // all ranks begin alike
  torch::nn::Sequential model(torch::nn::Linear(16, 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 1));
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-2));

  ms::Checkpointer ckpt(std::move(options));
  ms::Dict state{{"model", ms::torch::dict(*model)}, {"optimizer", ms::torch::dict(optimizer)}};
  const auto body = [&](ms::RunStep& step) {
    const auto x = examples(step.number(), ckpt.rank());
    optimizer.zero_grad();
    torch::mse_loss(model->forward(x), (x * x).mean(1, true)).backward();
    for (const auto& parameter : model->parameters()) average(step.group(), parameter.grad());
    step.before_update();  // waits until what is being staged was copied
    optimizer.step();
  };
  ckpt.run(state, steps, body, {.stage_every = 5, .overlap = true});

  std::uint64_t bits = 0;  // of all weights
  for (const auto& weights : model->parameters()) {
    const auto* w = static_cast<const std::uint32_t*>(weights.data_ptr());
    for (std::int64_t i = 0; i < weights.numel(); ++i) bits = bits * 31 + w[i];
  }
  std::printf("%llu steps: %016llx\n", static_cast<unsigned long long>(steps),
              static_cast<unsigned long long>(bits));
}

int main(int argc, char** argv) try {
  train({.job = "torch", .directory = argc > 1 ? argv[1] : "ckpt"},
        argc > 2 ? std::stoull(argv[2]) : 1000);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
