// The same states as nodes_replicated_test.cpp, staged, held and recovered by real processes whose
// images travel over Gloo.
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/store.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace meshstage::testing;

constexpr int kWorld = 4;

}  // namespace

TEST_CASE("four processes hold their wards' nodes over Gloo, and a lost rank gets its own back") {
  const std::string kind = GENERATE("nested", "dtensors", "sharded");
  CAPTURE(kind);
  const TemporaryFolder folder;
  const std::string vaults = folder.path() + "/vaults";
  std::filesystem::create_directory(vaults);
  FileStore store(folder.path() + "/store");
  const auto start = [&](int rank) {
    return std::make_unique<WorkerProcess>(own_folder() + "/nodes_rank_worker",
                                           std::vector{folder.path(), std::to_string(rank), kind});
  };
  const auto note = [&](const std::string& what, int generation, int rank) {
    return store.wait_for(what + "/" + std::to_string(generation) + "/" + std::to_string(rank),
                          Deadline::after(std::chrono::seconds(60)));
  };
  const auto check_held = [&](int generation) {
    for (int rank = 0; rank < kWorld; ++rank) {
      INFO("rank " << rank);
      CHECK(note("held", generation, rank) == std::to_string((rank + 2) % kWorld) + " 0 ");
    }
  };
  std::vector<std::unique_ptr<WorkerProcess>> workers;
  for (int rank = 0; rank < kWorld; ++rank) workers.push_back(start(rank));
  for (int rank = 0; rank < kWorld; ++rank) CHECK(note("recovered", 1, rank) == "nothing 0 ");
  check_held(1);

  // Rank 1's host goes, with its memory.
  constexpr int kVictim = 1;
  workers[kVictim]->kill();
  for (const auto& entry : std::filesystem::directory_iterator(vaults)) {
    if (entry.path().filename().string().find("-r1-") != std::string::npos)
      std::filesystem::remove(entry.path());
  }
  workers[kVictim] = start(kVictim);
  std::string step;
  for (int rank = 0; rank < kWorld; ++rank) {
    INFO("rank " << rank);
    const std::string text = note("recovered", 2, rank);
    const std::string source = rank == kVictim ? "holder memory" : "own memory";
    REQUIRE(text.substr(0, source.size()) == source);
    const std::string rest = text.substr(source.size());  // step and difference: the same for all
    if (rank == 0) step = rest;
    CHECK(rest == step);
    CHECK(rest.back() == ' ');  // no difference
    CHECK(std::stoull(rest) >= 10);
  }
  check_held(2);
  store.set("end", "");
  for (auto& worker : workers) CHECK(worker->finish() == 0);
  CHECK(std::filesystem::is_empty(vaults));
}
