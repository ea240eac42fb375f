// A rank of nodes_gloo_tests: nodes_rank_worker FOLDER RANK KIND, one of four, over Gloo. Recovers,
// stages two steps of that kind of state, looks at what it holds of its ward, and stages on until
// it loses a rank: then it rejoins and does the same again. What it sees goes to the Store
// (FOLDER/store), "" where a state is as it must be:
//   recovered/<generation>/<rank>  "<source> <step> <difference>"
//   held/<generation>/<rank>       "<owner> <steps behind the staged one> <difference>"
// The second generation finishes once the Store has "end". Exit status 0 then, 1 for any other end.
#include <chrono>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/generation/number.hpp>

#include "tests/nodes_replicated/node_states.hpp"

namespace {

using namespace meshstage;
using namespace meshstage::test;

struct Kind {
  StateOf state;
  RegistryOf registry;
};

const std::map<std::string, Kind> kKinds{{"nested", {nested_state, no_types}},
                                         {"dtensors", {dtensor_state, dtensors}},
                                         {"sharded", {sharded_state, sharded_tensors}}};

void run(const std::string& folder, int rank, const Kind& kind) {
  const auto store = std::make_shared<FileStore>(folder + "/store");
  CheckpointerOptions o;
  o.job = "nodes";
  o.directory = folder + "/files";
  o.vault_directory = folder + "/vaults";
  o.forming_deadline = std::chrono::seconds(60);
  o.persist_every = 0;
  o.block_bytes = 4096;
  o.environment.emplace();
  o.environment->rank = o.environment->local_rank = rank;
  o.environment->world_size = o.environment->local_world_size = 4;
  o.store_object = store;
  Checkpointer ckpt(o);
  const auto note = [&](const std::string& what, const std::string& text) {
    store->set(what + "/" + std::to_string(generation_in_run(ckpt.generation())) + "/" +
                   std::to_string(rank),
               text);
  };
  while (true) {
    try {
      Dict state = kind.state(rank, 0);
      const auto recovered = ckpt.recover(state);
      std::uint64_t step = recovered.step;
      note("recovered", std::string(to_string(recovered.source)) + " " + std::to_string(step) +
                            " " + difference(state, kind.state(rank, step)));
      const auto stage_next = [&] {
        step += 5;
        stage_and_wait(ckpt, kind.state(rank, step), step);
      };
      for (int i = 0; i < 2; ++i) stage_next();
      for (const int ward : ckpt.wards()) {
        const Replica held = ckpt.held(ward, kind.registry(rank));
        note("held", std::to_string(held.owner) + " " + std::to_string(step - held.id.step) + " " +
                         difference(kind.state(ward, step), held.state));
      }
      if (generation_in_run(ckpt.generation()) == 2) {
        (void)store->wait_for("end", in_time());
        return ckpt.finish();
      }
      while (true) stage_next();
    } catch (const RejoinNeeded&) {
      ckpt.rejoin();
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    run(argv[1], std::stoi(argv[2]), kKinds.at(argv[3]));
    return 0;
  } catch (const std::exception& e) {
    std::cerr << "nodes_rank_worker " << argv[2] << ": " << e.what() << "\n";
    return 1;
  }
}
