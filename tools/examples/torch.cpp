// A LibTorch trainer that survives the death of its ranks: a data-parallel regression. Start its
// ranks with `meshstage run -n 2 -- meshstage-example-torch`, or by torchrun, mpirun or srun.
// usage: meshstage-example-torch [DIRECTORY [STEPS]]
#include <torch/torch.h>

#include <cstdio>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/interop/torch.hpp>

namespace ms = meshstage;
using namespace ms::collectives;

/// What a rank learns from: of the step and the rank alone, so that a step that is trained again
/// after a recovery gives the same bits.
torch::Tensor examples(std::uint64_t step, int rank) {
  auto generator = at::detail::createCPUGenerator(1000 * step + static_cast<std::uint64_t>(rank));
  return torch::randn({64, 16}, generator);
}

void train(ms::CheckpointerOptions options, std::uint64_t steps) {
  torch::manual_seed(7);  // all ranks begin alike
  torch::nn::Sequential model(torch::nn::Linear(16, 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 1));
  torch::optim::AdamW optimizer(model->parameters(), 1e-2);

  ms::Checkpointer ckpt(std::move(options));
  ms::Dict state{{"model", ms::torch::dict(*model)}, {"optimizer", ms::torch::dict(optimizer)}};
  const auto body = [&](ms::RunStep& step) {
    const auto x = examples(step.number(), ckpt.rank());
    optimizer.zero_grad();
    torch::mse_loss(model->forward(x), (x * x).mean(1, true)).backward();
    for (const auto& p : model->parameters()) {
      all_reduce(step.group(), ms::torch::from_torch(p.grad()).span<float>(), ReduceOp::kAvg);
    }
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
