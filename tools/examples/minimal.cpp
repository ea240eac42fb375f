// A data-parallel trainer that survives the death of its ranks. Start each rank with MESHSTAGE_RANK
// and MESHSTAGE_WORLD_SIZE, or by torchrun, mpirun or srun; start a rank that died again the same
// way. usage: meshstage-example-minimal [DIRECTORY [STEPS]]
#include <array>
#include <exception>
#include <iostream>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>

#include "fit.hpp"

namespace ms = meshstage;
using ms::collectives::all_reduce;
using ms::collectives::ReduceOp;

void train(ms::CheckpointerOptions options, std::uint64_t steps) {
  Fit fit;
  std::array<float, Fit::kWeights> gradient{};

  ms::Checkpointer ckpt(std::move(options));  // .job, .directory: where complete steps go to disk
  ms::Dict state{{"weights", fit.weights}, {"momentum", fit.momentum}};
  const auto body = [&](ms::RunStep& step) {
    fit.gradient(ckpt.rank(), step.number(), gradient);  // only reads what is being staged
    all_reduce(step.group(), std::span<float>(gradient), ReduceOp::kAvg);
    step.before_update();  // waits until it is copied
    fit.update(gradient);
  };
  ckpt.run(state, steps, body, {.stage_every = 5, .overlap = true});

  fit.print(steps);
}

int main(int argc, char** argv) try {
  train({.job = "minimal", .directory = argc > 1 ? argv[1] : "ckpt"},
        argc > 2 ? std::stoull(argv[2]) : 100);
  return 0;
} catch (const std::exception& e) {
  std::cerr << e.what() << "\n";
  return 1;
}
