// The optimizer cut over a mesh: each rank has its part of the momentum as a DTensor, updates its
// part of the weights, and gets the others' parts from them.
// usage: meshstage-example-mesh [DIRECTORY [STEPS]]
#include <array>
#include <cstring>
#include <exception>
#include <iostream>
#include <optional>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/dtensor/dtensor.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/mesh/mesh_groups.hpp>

#include "fit.hpp"

namespace ms = meshstage;
using ms::collectives::all_reduce;
using ms::collectives::ReduceOp;

void train(ms::CheckpointerOptions options, std::uint64_t steps) {
  Fit fit;
  std::array<float, Fit::kWeights> gradient{};

  options.training_links = ms::TrainingLinks::kAll;  // DTensors send between any two ranks
  ms::Checkpointer ckpt(std::move(options));
  const auto mesh = ms::DeviceMesh::from_shape({ckpt.world_size()});
  const ms::Placements cut{ms::Placement::shard(0)};
  const auto momentum = ms::DTensor::from_full(fit.momentum, mesh, ckpt.rank(), cut);
  ms::Dict state{{"weights", fit.weights}, {"momentum", ms::dtensor::to_value(momentum)}};

  std::optional<ms::MeshGroups> groups;  // live as long as a generation
  const auto body = [&](ms::RunStep& step) {
    fit.gradient(ckpt.rank(), step.number(), gradient);
    all_reduce(step.group(), std::span<float>(gradient), ReduceOp::kAvg);
    step.before_update();
    const auto mine = ms::DTensor::from_full(fit.weights, mesh, ckpt.rank(), cut);
    const auto first = mine.local_shard().offset[0];
    fit.update(std::span(gradient).subspan(static_cast<std::size_t>(first)),
               mine.to_local().span<float>(), momentum.to_local().span<float>());
    const auto whole = mine.full_tensor(*groups, ms::Deadline::never());
    std::memcpy(fit.weights.data<float>(), whole.data<float>(), whole.nbytes());
  };
  ms::RunOptions run{.stage_every = 5, .overlap = true};
  run.recovered = [&](const ms::Recovered&) { groups.emplace(mesh, ckpt.group()); };
  ckpt.run(state, steps, body, run);

  fit.print(steps);
}

int main(int argc, char** argv) try {
  train({.job = "mesh", .directory = argc > 1 ? argv[1] : "ckpt"},
        argc > 2 ? std::stoull(argv[2]) : 100);
  return 0;
} catch (const std::exception& e) {
  std::cerr << e.what() << "\n";
  return 1;
}
