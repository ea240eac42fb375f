// SIGTERM to real ranks that train by Checkpointer::run(): all end at the same step, which is on
// disk; where that cannot be, the signal ends the process at once or at its limit.
#include <chrono>
#include <csignal>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/os/file_system.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Clock = std::chrono::steady_clock;

constexpr int kWorld = 3;
constexpr int kBySignal = 128 + SIGTERM;

class Job {
 public:
  explicit Job(std::chrono::milliseconds within) {
    std::filesystem::create_directory(vaults());
    for (int rank = 0; rank < kWorld; ++rank) {
      workers_.push_back(std::make_unique<WorkerProcess>(
          own_folder() + "/termination_worker",
          std::vector{folder_.path(), std::to_string(rank), std::to_string(kWorld),
                      std::to_string(within.count())}));
    }
    for (int rank = 0; rank < kWorld; ++rank) (void)note("training", rank);
  }
  WorkerProcess& rank(int r) { return *workers_[static_cast<std::size_t>(r)]; }
  std::string note(const std::string& what, int r) {
    return store_.wait_for(what + "/" + std::to_string(r), Deadline::after(60s));
  }
  void terminate(int r) { rank(r).signal(SIGTERM); }
  /// Exit status; the process must end in time.
  int status(int r, std::chrono::milliseconds time) {
    INFO("rank " << r);
    REQUIRE(rank(r).ends_within(time));
    return rank(r).finish();
  }
  /// Of all images on disk, by rank.
  std::vector<std::set<std::uint64_t>> steps_on_disk() {
    std::vector<std::set<std::uint64_t>> steps(kWorld);
    for (const auto& image :
         list_images(real_file_system(), folder_.path() + "/files", "termination")) {
      if (!image.name.holder)
        steps[static_cast<std::size_t>(image.name.rank)].insert(image.name.id.step);
    }
    return steps;
  }
  [[nodiscard]] std::string vaults() const { return folder_.path() + "/vaults"; }

 private:
  TemporaryFolder folder_;
  FileStore store_{folder_.path() + "/store"};
  std::vector<std::unique_ptr<WorkerProcess>> workers_;
};

}  // namespace

TEST_CASE("SIGTERM to one rank or to all: all end at the same step, and it is on disk") {
  const std::vector<int> told = GENERATE(std::vector{1}, std::vector{0, 1, 2});
  Job job(60s);
  for (const int rank : told) job.terminate(rank);
  const auto begin = Clock::now();
  std::set<std::uint64_t> ended;
  for (int rank = 0; rank < kWorld; ++rank) ended.insert(std::stoull(job.note("ended", rank)));
  CHECK(Clock::now() - begin < 60s);  // not by the limit: run() returned on each
  for (int rank = 0; rank < kWorld; ++rank) CHECK(job.rank(rank).finish() == 0);
  REQUIRE(ended.size() == 1);
  CHECK(*ended.begin() % 3 == 0);
  CHECK(job.steps_on_disk() == std::vector<std::set<std::uint64_t>>(kWorld, ended));
  CHECK(std::filesystem::is_empty(job.vaults()));
}

TEST_CASE("where no step ends any more the limit ends each process, and not before") {
  constexpr auto kWithin = 1500ms;
  Job job(kWithin);
  job.rank(1).tell("hang");
  (void)job.note("hung", 1);
  const auto begin = Clock::now();
  for (int rank = 0; rank < kWorld; ++rank) job.terminate(rank);
  CHECK(job.status(1, 60s) == kBySignal);
  CHECK(Clock::now() - begin >= kWithin);
  // The other two end by their own limit, or because rank 1 was gone a moment before.
  CHECK(job.status(0, 60s) == kBySignal);
  CHECK(job.status(2, 60s) == kBySignal);
  // Nothing is lost: the vaults stay for a restart.
  CHECK_FALSE(std::filesystem::is_empty(job.vaults()));
}

TEST_CASE("while a generation is broken SIGTERM ends a process at once") {
  Job job(300s);
  job.rank(2).kill();
  // Whether a rank has noticed the death already or not: it must not wait for the limit, nor for a
  // replacement.
  job.terminate(0);
  job.terminate(1);
  CHECK(job.status(0, 60s) == kBySignal);
  CHECK(job.status(1, 60s) == kBySignal);
}
