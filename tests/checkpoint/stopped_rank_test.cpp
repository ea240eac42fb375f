// The process of a rank is stopped inside Checkpointer::run(): real processes, without a launcher.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

using namespace std::chrono_literals;
using meshstage::testing::own_folder;
using meshstage::testing::WorkerProcess;

namespace {

/// The ranks of hanging_trainer.cpp, whose rank 1 stops itself at `where` in its first life.
class StoppingJob {
 public:
  StoppingJob(std::string where, std::string forming)
      : where_(std::move(where)), forming_(std::move(forming)) {
    std::filesystem::create_directory(directory_.path() / "vault");
  }
  std::unique_ptr<WorkerProcess> start(int rank, const std::string& output) {
    const std::string number = std::to_string(rank);
    return std::make_unique<WorkerProcess>(
        "/usr/bin/env",
        std::vector<std::string>{"MESHSTAGE_RANK=" + number, "MESHSTAGE_WORLD_SIZE=3",
                                 "MESHSTAGE_LOCAL_RANK=" + number, "MESHSTAGE_LOCAL_WORLD_SIZE=3",
                                 "MESHSTAGE_JOB=stopping", "sh", "-c", "exec \"$@\" >\"$0\" 2>&1",
                                 (directory_.path() / output).string(),
                                 own_folder() + "/hanging_trainer", directory_.path().string(),
                                 "stop", where_, forming_});
  }
  [[nodiscard]] std::string printed(const std::string& output) const {
    std::ifstream in(directory_.path() / output);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }

 private:
  const TempDirectory directory_;
  const std::string where_, forming_;
};

/// The stopped rank prints one error when it goes on: it is fenced, or waits for the others in
/// vain, or a call of the Store or the engine itself took until after its deadline.
void check_woken(const std::string& printed) {
  CHECK_THAT(printed, contains_text("fenced: ") || contains_text("did not come: 0, 2") ||
                          contains_text("no answer by the deadline") ||
                          contains_text("this process cannot go on and must be ended"));
  CHECK(std::count(printed.begin(), printed.end(), '\n') == 1);
}

/// The rank is stopped still, and goes on now.
void check_goes_on_in_vain(const StoppingJob& job, WorkerProcess& stopped) {
  CHECK(stopped.running());
  stopped.signal(SIGCONT);
  CHECK(stopped.finish() == 1);
  check_woken(job.printed("stopped"));
}

}  // namespace

TEST_CASE("a rank that is stopped in run() is replaced, and fenced when it goes on") {
  // While it recovers, before its first step, in a step, while it stages, and behind a step.
  const std::string where =
      GENERATE("formed", "claimed", "restoring", "recovered", "0", "4", "own-sealed", "complete");
  INFO(where);
  StoppingJob job(where, "60");
  const auto zero = job.start(0, "0");
  const auto stopped = job.start(1, "stopped");
  const auto two = job.start(2, "2");
  stopped->wait_until_stopped();
  const auto replacement = job.start(1, "1");
  CHECK(replacement->finish() == 0);
  CHECK(zero->finish() == 0);
  CHECK(two->finish() == 0);
  for (const char* output : {"0", "1", "2"}) CHECK(job.printed(output) == "sum 48\n");
  check_goes_on_in_vain(job, *stopped);
}

TEST_CASE("nobody replaces a rank that is stopped in run(): the others end with one clear error") {
  const std::string where = GENERATE("formed", "4");
  INFO(where);
  StoppingJob job(where, "10");
  const auto zero = job.start(0, "0");
  const auto stopped = job.start(1, "stopped");
  const auto two = job.start(2, "2");
  stopped->wait_until_stopped();
  CHECK(zero->ends_within(60s));
  CHECK(two->ends_within(60s));
  CHECK(zero->finish() == 1);
  CHECK(two->finish() == 1);
  for (const char* output : {"0", "2"}) {
    CHECK_THAT(job.printed(output), contains_text("timeout: ") && contains_text("did not come: 1"));
  }
  check_goes_on_in_vain(job, *stopped);
}
