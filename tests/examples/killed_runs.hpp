#pragma once
// Example programs that are killed at named points of the protocol (killed.cpp), and their
// replacements again, and end with the bits of a run that nobody disturbed.
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/points/points.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

namespace examples {

using meshstage::Point;
using meshstage::testing::own_folder;
using meshstage::testing::WorkerProcess;

constexpr int kRanks = 3;
constexpr int kKilled = 128 + SIGKILL;
constexpr int kNeverPassed = 3;

/// Where a process kills itself, and whether its vault is gone then, as with its host.
struct Death {
  Point point = Point::kFormed;
  int pass = 1;
  bool with_vault = false;
};

inline void remove_vault(const std::filesystem::path& vaults, int rank) {
  const std::string mark = "-r" + std::to_string(rank) + "-i";
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(vaults)) {
    if (entry.path().filename().string().find(mark) != std::string::npos) {
      files.push_back(entry.path());
    }
  }
  for (const auto& file : files) std::filesystem::remove(file);
}

struct Run {
  std::vector<std::string> printed;  ///< By each rank's last process.
  std::vector<int> status;           ///< Of each rank's last process.
  int deaths = 0;
};

/// Runs all ranks of an example; the processes of rank r die by deaths[r], one behind the other,
/// and are started again.
inline Run run(const std::string& example, const std::vector<std::vector<Death>>& deaths,
               const std::string& steps = "12") {
  const TempDirectory directory;
  std::filesystem::create_directory(directory.path() / "vault");
  Run result;
  result.printed.resize(kRanks);
  result.status.resize(kRanks);
  std::vector<int> died(kRanks);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < kRanks; ++rank) {
    ranks.emplace_back([&, rank] {
      const auto r = static_cast<std::size_t>(rank);
      const auto output = directory.path() / ("printed-" + std::to_string(rank));
      for (std::size_t life = 0;; ++life) {
        const std::string number = std::to_string(rank);
        const std::string world = std::to_string(kRanks);
        std::vector<std::string> words{"MESHSTAGE_RANK=" + number,
                                       "MESHSTAGE_WORLD_SIZE=" + world,
                                       "MESHSTAGE_LOCAL_RANK=" + number,
                                       "MESHSTAGE_LOCAL_WORLD_SIZE=" + world,
                                       "OMP_NUM_THREADS=1",  // LibTorch takes all cores
                                       "sh",
                                       "-c",
                                       "exec \"$@\" >\"$0\"",
                                       output.string(),
                                       own_folder() + "/killed_" + example,
                                       directory.path().string(),
                                       steps};
        if (life < deaths[r].size()) {
          words.emplace_back(meshstage::to_string(deaths[r][life].point));
          words.push_back(std::to_string(deaths[r][life].pass));
        }
        result.status[r] = WorkerProcess("/usr/bin/env", words).finish();
        if (result.status[r] != kKilled) break;
        ++died[r];
        if (deaths[r][life].with_vault) remove_vault(directory.path() / "vault", rank);
      }
      std::ifstream file(output);
      std::getline(file, result.printed[r]);
    });
  }
  for (auto& rank : ranks) rank.join();
  for (const int n : died) result.deaths += n;
  return result;
}

/// What the ranks print when nobody dies.
inline std::vector<std::string> undisturbed(const std::string& example) {
  const Run quiet = run(example, std::vector<std::vector<Death>>(kRanks));
  CHECK(quiet.status == std::vector<int>(kRanks, 0));
  for (const auto& line : quiet.printed) CHECK(line.starts_with("12 steps: "));
  return quiet.printed;
}

/// Kills each of two ranks at each of these points twice, and compares what is printed.
inline void killed_at(const std::string& example, std::span<const Point> points) {
  const auto expected = undisturbed(example);
  for (const Point point : points) {
    // These may be passed when others have finished already, and then there is nobody to come back
    // to, as PROTOCOL.md says.
    if (point == Point::kFinishing || point == Point::kPruned) continue;
    const bool fetches = point == Point::kFetchStarted || point == Point::kFetched;
    int deaths = 0;
    for (const int victim : {0, kRanks - 1}) {
      // The first process dies on its first pass, before any step is complete, or on a later one;
      // its replacement at the same point again, while it recovers or trains.
      for (const int pass : {1, 3}) {
        std::vector<std::vector<Death>> plan(kRanks);
        auto& lives = plan[static_cast<std::size_t>(victim)];
        lives = {{point, pass}, {point}};
        if (fetches) lives = {{Point::kVoted, pass, true}, {point, 1, true}, {point}};
        const Run disturbed = run(example, plan);
        INFO(example << ": rank " << victim << " at " << meshstage::to_string(point) << ", pass "
                     << pass << " and 1");
        deaths += disturbed.deaths;
        for (const int status : disturbed.status) {
          CHECK((status == 0 || status == kNeverPassed));
        }
        CHECK(disturbed.printed == expected);
      }
    }
    INFO(example << " at " << meshstage::to_string(point));
    CHECK((deaths > 0 || point == Point::kFailed));  // no step fails here
  }
}

}  // namespace examples
