// The training loop in the program's own hands. Start each rank with MESHSTAGE_RANK and
// MESHSTAGE_WORLD_SIZE, or by torchrun, mpirun or srun; start a rank that died again the same way.
// usage: meshstage-example-loop [DIRECTORY [STEPS]]
#include <array>
#include <exception>
#include <iostream>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>

#include "fit.hpp"

namespace ms = meshstage;

void train(ms::CheckpointerOptions options, std::uint64_t steps) {
  Fit fit;
  std::array<float, Fit::kWeights> gradient{};
  ms::Checkpointer ckpt(std::move(options));
  const auto backward = [&](std::uint64_t step) {
    fit.gradient(ckpt.rank(), step, gradient);
    if (ckpt.world_size() == 1) return;
    ms::collectives::all_reduce(*ckpt.group(), std::span<float>(gradient),
                                ms::collectives::ReduceOp::kAvg);
  };
  const auto update = [&] { fit.update(gradient); };
  ms::Dict state{{"weights", fit.weights}, {"momentum", fit.momentum}};

  bool trained = false;
  while (!trained) {
    try {
      auto step = ckpt.recover(state).step;  // in place; at the very start it stages step 0
      ms::Staging last;
      while (step < steps) {
        backward(step);        // only reads what is staged
        last.staged().wait();  // before it changes
        update();
        if (++step % 5 == 0) last = ckpt.stage(state, step);
      }
      ckpt.finish();
      trained = true;
    } catch (const ms::RejoinNeeded&) {  // a peer died, or was silent
      ckpt.rejoin();
    }
  }
  fit.print(steps);
}

int main(int argc, char** argv) try {
  train({.job = "loop", .directory = argc > 1 ? argv[1] : "ckpt"},
        argc > 2 ? std::stoull(argv[2]) : 100);
  return 0;
} catch (const std::exception& e) {
  std::cerr << e.what() << "\n";
  return 1;
}
