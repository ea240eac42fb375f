// A rank of dtensor_gloo_test: dtensor_gloo_worker STORE RANK. Redistributes random tensors on
// meshes of four ranks over Gloo and compares with the definition; every rank works out the same
// cases from the same seeds. Exit status 0 if all were right.
#include <chrono>
#include <cstring>
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

/// The local tensors of all ranks, by place in the mesh.
std::vector<Tensor> all_locals(ProcessGroup& world, const DeviceMesh& mesh, const Shape& shape,
                               const DTensor& mine, const Placements& placements,
                               Deadline deadline) {
  const auto local = mine.to_local().contiguous();
  const auto all =
      collectives::all_gather_bytes(world, {local.first_byte(), local.nbytes()}, deadline);
  const Layout layout(mesh.shape(), shape, placements);
  std::vector<Tensor> locals;
  for (std::int64_t i = 0; i < mesh.size(); ++i) {
    const int rank = mesh.rank_at(i);
    const auto part = layout.at(*mesh.coordinate(rank));
    const auto& bytes = all[static_cast<std::size_t>(rank)];
    auto tensor = Tensor::empty(part.shape, DType::kF64);
    // Another size than the layout gives it: left without a shape, which the definition refuses.
    if (tensor.nbytes() != bytes.size()) tensor = Tensor::zeros({1, 0, 1}, DType::kF64);
    if (tensor.nbytes() != 0) std::memcpy(tensor.first_byte(), bytes.data(), bytes.size());
    locals.push_back(tensor);
  }
  return locals;
}

int wrong_cases(const std::shared_ptr<ProcessGroup>& world, Deadline deadline) {
  const std::vector<DeviceMesh> meshes{DeviceMesh::from_shape({4}),
                                       DeviceMesh::from_shape({2, 2}),
                                       DeviceMesh::from_ranks({2, 0, 3, 1}, {4}, {"x"}),
                                       DeviceMesh::from_shape({4, 1}),
                                       DeviceMesh::from_ranks({3, 1, 0, 2}, {2, 2}, {"dp", "tp"}),
                                       DeviceMesh::from_shape({2, 1, 2})};
  int wrong = 0;
  for (std::uint32_t seed = 0; seed < 80; ++seed) {
    Chance chance(seed);
    const auto& mesh = meshes[seed % meshes.size()];
    MeshGroups groups(mesh, world);
    // Now and then one whose blocks travel in several parts.
    const Shape shape = seed % 10 == 0 ? Shape{97, 5, 101} : chance.shape();
    const auto from = chance.placements(mesh.ndim(), shape.size());
    const auto to = chance.placements(mesh.ndim(), shape.size());
    const auto locals = random_locals(chance, mesh, shape, from);
    const auto whole = whole_by_definition(mesh, shape, from, locals);
    const auto place = static_cast<std::size_t>(*mesh.index_of(groups.rank()));
    const auto moved = DTensor::from_local(locals[place], groups, from, deadline, {.shape = shape})
                           .redistribute(groups, to, deadline);
    // What each rank has now, put together by the definition, not by the code that is tested.
    const auto again =
        whole_by_definition(mesh, shape, to, all_locals(*world, mesh, shape, moved, to, deadline));
    const auto full = Tensor::from_vector(*whole, shape);
    if (moved.placements() != normalized(to, shape.size()) || again != whole ||
        !same_bits(moved.full_tensor(groups, deadline), full)) {
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
