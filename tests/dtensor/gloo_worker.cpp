// A rank of dtensor_gloo_test: dtensor_gloo_worker STORE RANK. Redistributes random tensors on
// meshes of four ranks over Gloo and compares with the definition; every rank works out the same
// cases from the same seeds. Exit status 0 if all were right.
#include <chrono>
#include <exception>
#include <iostream>
#include <string>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/dtensor/dtensor.hpp>

#include "tests/dtensor/definition.hpp"
#include "tests/dtensor/random_cases.hpp"

namespace {

using namespace meshstage;
using namespace meshstage::test;

int wrong_cases(const std::shared_ptr<ProcessGroup>& world, Deadline deadline) {
  const std::vector<std::vector<std::int64_t>> meshes{{4}, {2, 2}, {4, 1}, {2, 1, 2}};
  int wrong = 0;
  for (std::uint32_t seed = 0; seed < 80; ++seed) {
    Chance chance(seed);
    const auto mesh = DeviceMesh::from_shape(meshes[seed % meshes.size()]);
    MeshGroups groups(mesh, world);
    // Now and then one whose blocks travel in several parts.
    const Shape shape = seed % 10 == 0 ? Shape{97, 5, 101} : chance.shape();
    const auto from = chance.placements(mesh.ndim(), shape.size());
    const auto to = chance.placements(mesh.ndim(), shape.size());
    const auto locals = random_locals(chance, mesh, shape, from);
    const auto whole = whole_by_definition(mesh, shape, from, locals);
    const auto moved = DTensor::from_local(locals[static_cast<std::size_t>(groups.rank())], groups,
                                           from, deadline, {.shape = shape})
                           .redistribute(groups, to, deadline);
    if (!same_bits(moved.full_tensor(groups, deadline), Tensor::from_vector(*whole, shape))) {
      std::cerr << "seed " << seed << ", " << mesh.to_string() << " " << to_string(shape) << ": "
                << to_string(from) << " to " << to_string(to) << "\n";
      ++wrong;
    }
  }
  return wrong;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    const auto deadline = Deadline::after(std::chrono::seconds(90));
    FileStore store(argv[1]);
    ConnectRequest request;
    request.job = "dtensor";
    request.generation = 1;
    request.name = "data";
    request.rank = std::stoi(argv[2]);
    request.world_size = 4;
    request.store_prefix = "net";
    for (int r = 0; r < 4; ++r) {
      if (r != request.rank) request.peers.push_back(r);
    }
    const auto world = make_tcp_transport({})->connect_group(request, store, deadline);
    const int wrong = wrong_cases(world, deadline);
    collectives::barrier(*world, deadline);  // nobody leaves while another still receives
    return wrong == 0 ? 0 : 1;
  } catch (const std::exception& e) {
    std::cerr << "rank " << argv[2] << ": " << e.what() << "\n";
    return 1;
  }
}
