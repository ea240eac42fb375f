// A LibTorch trainer on two ranks: one is killed, and comes back.
#include <array>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <utility>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"

using meshstage::testing::own_folder;
using meshstage::testing::TemporaryFolder;
using meshstage::testing::WorkerProcess;

namespace {

std::string contents(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Trains on two ranks, of which one is killed after step `kill_at` (0: none) and started again;
/// what each rank saved.
std::array<std::string, 2> train(int victim, int kill_at, const std::string& preload) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path() + "/vault");
  const auto start = [&](int rank, int killed_at) {
    std::vector<std::string> arguments{
        "MESHSTAGE_RANK=" + std::to_string(rank), "MESHSTAGE_WORLD_SIZE=2",
        "MESHSTAGE_LOCAL_RANK=" + std::to_string(rank), "MESHSTAGE_LOCAL_WORLD_SIZE=2"};
    if (!preload.empty()) arguments.push_back("LD_PRELOAD=" + preload);
    arguments.insert(arguments.end(),
                     {own_folder() + "/torch_trainer", folder.path(), "20",
                      folder.path() + "/saved" + std::to_string(rank), std::to_string(killed_at)});
    return std::make_unique<WorkerProcess>("/usr/bin/env", arguments);
  };
  std::array<std::unique_ptr<WorkerProcess>, 2> ranks;
  for (const int r : {0, 1}) {
    ranks[static_cast<std::size_t>(r)] = start(r, r == victim ? kill_at : 0);
  }
  if (kill_at > 0) {
    auto& process = ranks[static_cast<std::size_t>(victim)];
    CHECK(process->finish() == 128 + SIGKILL);
    process = start(victim, 0);
  }
  std::array<std::string, 2> saved;
  for (const int r : {0, 1}) {
    CHECK(ranks[static_cast<std::size_t>(r)]->finish() == 0);
    saved[static_cast<std::size_t>(r)] = contents(folder.path() + "/saved" + std::to_string(r));
    CHECK(saved[static_cast<std::size_t>(r)].size() > 1000);
  }
  return saved;
}

std::string jemalloc() {
  for (const char* place :
       {"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"}) {
    const std::string file = std::string(place) + "/libjemalloc.so.2";
    if (std::filesystem::exists(file)) return file;
  }
  return "";
}

}  // namespace

TEST_CASE("A LibTorch trainer that is killed ends with the bits of one that is not") {
  // Gloo is in LibTorch, where it averages gradients, and in our module, beside it.
  const auto undisturbed = train(0, 0, "");
  for (const auto& [victim, kill_at] : {std::pair{1, 11}, {0, 14}}) {
    INFO("rank " << victim << " killed after step " << kill_at);
    const bool same = train(victim, kill_at, "") == undisturbed;
    CHECK(same);
  }
}

TEST_CASE("A LibTorch trainer under a preloaded jemalloc is killed and recovers alike") {
  const std::string library = jemalloc();
  if (library.empty()) {
    WARN("skipped: no libjemalloc.so.2 (package libjemalloc2)");
    return;
  }
  const auto undisturbed = train(0, 0, "");
  const bool same = train(1, 11, library) == undisturbed;
  CHECK(same);
}
