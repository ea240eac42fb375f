// Membership with real processes over sockets and Gloo: killed, stopped and woken.
#include <chrono>
#include <csignal>
#include <memory>

#include <meshstage/core/comm/store.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;

constexpr int kWorld = 4;

class Job {
 public:
  Job() {
    for (int r = 0; r < kWorld; ++r) workers_.push_back(start(r));
  }
  [[nodiscard]] std::unique_ptr<WorkerProcess> start(int rank) {
    return std::make_unique<WorkerProcess>(
        own_folder() + "/membership_worker",
        std::vector{folder_.path(), std::to_string(rank), std::to_string(kWorld)});
  }
  std::unique_ptr<WorkerProcess>& worker(int rank) {
    return workers_[static_cast<std::size_t>(rank)];
  }
  /// What each rank reports of a generation, when it does.
  std::vector<std::string> reports(int generation) {
    std::vector<std::string> all;
    for (int r = 0; r < kWorld; ++r) {
      all.push_back(store_.wait_for(
          "report/" + std::to_string(generation) + "/" + std::to_string(r), Deadline::after(30s)));
    }
    return all;
  }
  std::vector<int> finish() {
    std::vector<int> statuses;
    // All learn it before any is waited for.
    for (auto& w : workers_) w->end_input();
    for (auto& w : workers_) statuses.push_back(w->finish());
    return statuses;
  }

 private:
  TemporaryFolder folder_;
  FileStore store_{folder_.path()};
  std::vector<std::unique_ptr<WorkerProcess>> workers_;
};

const std::vector<std::string> kFirst(kWorld, "sum 6");

}  // namespace

TEST_CASE("killed ranks, one after another, are replaced, and every survivor names them") {
  Job job;
  REQUIRE(job.reports(1) == kFirst);
  for (int victim = 0; victim < kWorld; ++victim) {
    INFO("victim " << victim);
    job.worker(victim)->kill();
    job.worker(victim) = job.start(victim);
    std::vector<std::string> expected(kWorld,
                                      "sum 6, after the death of " + std::to_string(victim));
    expected[static_cast<std::size_t>(victim)] = "sum 6";
    REQUIRE(job.reports(victim + 2) == expected);
  }
  CHECK(job.finish() == std::vector<int>(kWorld, 0));
}

TEST_CASE(
    "a stopped rank is found silent and replaced; awake again it is fenced and harms nothing") {
  Job job;
  REQUIRE(job.reports(1) == kFirst);
  const auto zombie = std::move(job.worker(1));
  zombie->signal(SIGSTOP);
  job.worker(1) = job.start(1);
  std::vector<std::string> expected(kWorld, "sum 6, after the death of 1");
  expected[1] = "sum 6";
  REQUIRE(job.reports(2) == expected);
  zombie->signal(SIGCONT);
  CHECK(zombie->finish() == 3);  // InvalidState: fenced
  CHECK(job.finish() == std::vector<int>(kWorld, 0));
}
