#pragma once
// Example programs that are killed at named points of the protocol (killed.cpp), and their
// replacements again, and end with the bits of a run that nobody disturbed.
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
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

/// The deaths of each rank's processes, one behind the other.
using Plan = std::vector<std::vector<Death>>;

inline Plan nobody_dies() { return Plan(kRanks); }
inline Plan dies(int rank, std::vector<Death> deaths) {
  Plan plan(kRanks);
  plan[static_cast<std::size_t>(rank)] = std::move(deaths);
  return plan;
}

/// What the last process of a rank left behind.
struct Ended {
  int status = 0;
  std::string printed;  ///< By the example.
  std::string began;    ///< "began with step 10"
  std::string errors;   ///< The standard error of all its processes.
};

struct Run {
  std::vector<Ended> ranks{kRanks};
  int deaths = 0;

  [[nodiscard]] std::vector<std::string> printed() const {
    std::vector<std::string> all;
    for (const Ended& rank : ranks) all.push_back(rank.printed);
    return all;
  }
  [[nodiscard]] std::string errors() const {
    std::string all;
    for (const Ended& rank : ranks) all += rank.errors;
    return all;
  }
};

inline std::string read(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A job of an example, in a folder of its own. `kind` says how its processes run:
/// - plain: as they are;
/// - pruning: each complete step goes to disk, and a rank that is to die copies no step before it
///   has pruned the files of the last one. So nobody is at its end when it dies there;
/// - failing: the root's Store does not answer in the three steps behind step 0 and behind each
///   recovery, so that these steps fail;
/// - ending: a rank whose peers are gone waits for them for 20 s.
class Job {
 public:
  Job(std::string example, std::string steps, std::string kind)
      : example_(std::move(example)), steps_(std::move(steps)), kind_(std::move(kind)) {}

  /// Starts all ranks, and waits until they have ended. With `again` a rank that died is started
  /// again.
  Run start(const Plan& plan, bool again = true) {
    Run result;
    std::vector<int> died(kRanks);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < kRanks; ++rank) {
      ranks.emplace_back([&, rank] {
        const auto r = static_cast<std::size_t>(rank);
        died[r] = run_rank(rank, plan[r], again, result.ranks[r]);
      });
    }
    for (auto& rank : ranks) rank.join();
    for (const int n : died) result.deaths += n;
    return result;
  }

 private:
  /// The number of deaths.
  int run_rank(int rank, const std::vector<Death>& deaths, bool again, Ended& ended) {
    const std::string number = std::to_string(rank);
    const std::string world = std::to_string(kRanks);
    const auto output = folder_.path() / ("printed-" + number);
    const auto errors = output.string() + ".errors";
    std::filesystem::remove(errors);
    int died = 0;
    for (std::size_t life = 0;; ++life) {
      std::vector<std::string> words{"MESHSTAGE_RANK=" + number,
                                     "MESHSTAGE_WORLD_SIZE=" + world,
                                     "MESHSTAGE_LOCAL_RANK=" + number,
                                     "MESHSTAGE_LOCAL_WORLD_SIZE=" + world,
                                     "OMP_NUM_THREADS=1",  // LibTorch takes all cores
                                     "sh",
                                     "-c",
                                     "exec \"$@\" >\"$0\" 2>>\"$0.errors\"",
                                     output.string(),
                                     own_folder() + "/killed_" + example_,
                                     folder_.path().string(),
                                     steps_,
                                     kind_};
      if (life < deaths.size()) {
        words.emplace_back(meshstage::to_string(deaths[life].point));
        words.push_back(std::to_string(deaths[life].pass));
      }
      ended.status = WorkerProcess("/usr/bin/env", words).finish();
      if (ended.status != kKilled) break;
      ++died;
      if (deaths[life].with_vault) remove_vault(rank);
      if (!again) break;
    }
    std::ifstream file(output);
    std::getline(file, ended.printed);
    std::getline(file, ended.began);
    ended.errors = read(errors);
    return died;
  }

  void remove_vault(int rank) const {
    const std::string mark = "-r" + std::to_string(rank) + "-i";
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path() / "vault")) {
      if (entry.path().filename().string().find(mark) != std::string::npos) {
        files.push_back(entry.path());
      }
    }
    for (const auto& file : files) std::filesystem::remove(file);
  }

  std::string example_;
  std::string steps_;
  std::string kind_;
  TempDirectory folder_;
};

/// What the ranks print when nobody dies.
inline std::vector<std::string> undisturbed(const std::string& example, const std::string& steps) {
  const Run quiet = Job(example, steps, "plain").start(nobody_dies());
  INFO(quiet.errors());
  for (const Ended& rank : quiet.ranks) {
    CHECK(rank.status == 0);
    CHECK(rank.printed.starts_with(steps + " steps: "));
    CHECK(rank.began == "began with step 0");
  }
  return quiet.printed();
}

/// Each rank of a job ended with the right bits, or was left behind by a death when others had
/// finished, and says who is missing.
inline void check_ended_or_left(const Run& run, const std::vector<std::string>& expected) {
  for (std::size_t r = 0; r < kRanks; ++r) {
    const Ended& ended = run.ranks[r];
    INFO("rank " << r << " ended with " << ended.status << "\n" << ended.errors);
    if (ended.status == kKilled) continue;
    if (ended.status == 1) {
      CHECK(ended.errors.find("not formed by the deadline") != std::string::npos);
      continue;
    }
    CHECK((ended.status == 0 || ended.status == kNeverPassed));
    CHECK(ended.printed == expected[r]);
  }
}

/// Kills the root, and in another job a leaf, when every rank has called finish(), twice each. A
/// rank that dies there may have nobody to come back to, as PROTOCOL.md says. But the newest step
/// is on disk by then, so the next start of all ranks goes on from it.
inline void killed_finishing(const std::string& example) {
  const std::string steps = "15";  // the last one is staged by every example
  const auto expected = undisturbed(example, steps);
  const auto all_go_on_from_disk = [&](Job& job) {
    const Run after = job.start(nobody_dies());
    INFO(after.errors());
    for (const Ended& rank : after.ranks) {
      CHECK(rank.status == 0);
      CHECK(rank.began == "began with step " + steps);
    }
    CHECK(after.printed() == expected);
  };
  INFO(example << " at finishing");
  {
    // The root's word that all have finished may have left it, or not. If not, the others wait for
    // the root, which is started again.
    Job job(example, steps, "ending");
    const Run run = job.start(dies(0, {{Point::kFinishing}, {Point::kFinishing}}));
    CHECK(run.deaths >= 1);
    check_ended_or_left(run, expected);
    all_go_on_from_disk(job);
  }
  {
    // A leaf has that word from the root, so the root has finished.
    const int leaf = kRanks - 1;
    Job job(example, steps, "ending");
    for (int start = 1; start <= 2; ++start) {
      const Run run = job.start(dies(leaf, {{Point::kFinishing}}), false);
      CHECK(run.deaths == 1);
      CHECK(run.ranks[0].status == 0);
      check_ended_or_left(run, expected);
    }
    all_go_on_from_disk(job);
  }
}

/// Kills each of two ranks at each of these points twice, and compares what is printed.
inline void killed_at(const std::string& example, std::span<const Point> points) {
  std::map<std::string, std::vector<std::string>> expected;  // by the number of steps
  for (const Point point : points) {
    if (point == Point::kFinishing) {
      killed_finishing(example);
      continue;
    }
    std::string kind = "plain";
    std::string steps = "12";
    if (point == Point::kPruned) std::tie(kind, steps) = std::pair("pruning", "30");
    if (point == Point::kFailed) std::tie(kind, steps) = std::pair("failing", "37");
    if (!expected.contains(steps)) expected[steps] = undisturbed(example, steps);
    const bool fetches = point == Point::kFetchStarted || point == Point::kFetched;
    int deaths = 0;
    for (const int victim : {0, kRanks - 1}) {
      // The first process dies on its first pass, before any step is complete, or on a later one;
      // its replacement at the same point again, while it recovers or trains.
      for (const int pass : {1, 3}) {
        std::vector<Death> lives{{point, pass}, {point}};
        if (fetches) lives = {{Point::kVoted, pass, true}, {point, 1, true}, {point}};
        const Run disturbed = Job(example, steps, kind).start(dies(victim, lives));
        INFO(example << ": rank " << victim << " at " << meshstage::to_string(point) << ", pass "
                     << pass << " and 1\n"
                     << disturbed.errors());
        deaths += disturbed.deaths;
        for (const Ended& rank : disturbed.ranks) {
          CHECK((rank.status == 0 || rank.status == kNeverPassed));
        }
        CHECK(disturbed.printed() == expected[steps]);
        if (kind != "plain") CHECK(disturbed.deaths == 2);
      }
    }
    INFO(example << " at " << meshstage::to_string(point));
    CHECK(deaths > 0);
  }
}

}  // namespace examples
