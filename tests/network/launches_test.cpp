// Starts of a job beside one another, as real processes: beside a healthy job, beside one that
// hangs, after one that died.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/network/rank_notes.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;

using Workers = std::vector<std::unique_ptr<WorkerProcess>>;

constexpr int kFenced = 3;  // exit status of a worker that was refused or fenced

/// One job on one host, and the starts of it.
class Job : public RankNotes {
 public:
  explicit Job(std::chrono::milliseconds deadline, int persist_every = 0)
      : deadline_(deadline), persist_every_(persist_every) {
    std::filesystem::create_directory(folder_.path() + "/vaults");
  }
  [[nodiscard]] std::unique_ptr<WorkerProcess> start(int rank, const std::string& launch,
                                                     int world = kWorld, bool takes_over = false) {
    std::vector<std::string> arguments{folder_.path(),
                                       std::to_string(rank),
                                       std::to_string(world),
                                       std::to_string(deadline_.count()),
                                       launch,
                                       std::to_string(persist_every_)};
    if (takes_over) arguments.emplace_back("take-over");
    return std::make_unique<WorkerProcess>(own_folder() + "/rank_worker", arguments);
  }
  [[nodiscard]] Workers start_all(const std::string& launch, int world = kWorld,
                                  bool takes_over = false) {
    Workers workers;
    for (int r = 0; r < world; ++r) workers.push_back(start(r, launch, world, takes_over));
    return workers;
  }
  /// The generation in which rank 0 recovers after that one: the next, or a later one where an
  /// attempt failed.
  int after(int generation) {
    const auto until = Deadline::after(60s);
    while (!until.expired()) {
      int newest = 0;
      for (const auto& key : store_.list("recovered/")) {
        if (key.ends_with("/0")) newest = std::max(newest, std::stoi(key.substr(10)));
      }
      if (newest > generation) return newest;
      std::this_thread::sleep_for(5ms);
    }
    FAIL("no generation after " << generation);
    return 0;
  }
  int complete(int generation) { return std::stoi(note("complete", generation, 0)); }
  std::string end_of(const std::string& launch, int rank) {
    return store_.wait_for("ended/" + launch + "/" + std::to_string(rank), Deadline::after(60s));
  }
  /// Names of the files in which the ranks' vaults lie.
  [[nodiscard]] std::set<std::string> vaults() const { return names("/vaults"); }
  [[nodiscard]] std::set<std::string> names(const std::string& in) const {
    std::set<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path() + in)) {
      found.insert(entry.path().filename().string());
    }
    return found;
  }

 private:
  const std::chrono::milliseconds deadline_;
  const int persist_every_;
};

void end(Workers& workers) {
  for (auto& w : workers) w->end_input();
  for (auto& w : workers) CHECK(w->finish() == 0);
}

void require_refused(Job& job, Workers& workers, const std::string& launch) {
  for (std::size_t r = 0; r < workers.size(); ++r) {
    CHECK(workers[r]->finish() == kFenced);
    const std::string why = job.end_of(launch, static_cast<int>(r));
    CHECK_THAT(why, Contains("job network is running: all 4 ranks"));
    CHECK_THAT(why, Contains(" since 2"));
    CHECK_THAT(why, Contains("take_over"));
  }
}

}  // namespace

TEST_CASE("a second start beside a healthy job is refused, and the job goes on") {
  const bool named = GENERATE(true, false);
  const int persist_every = GENERATE(0, 2);
  INFO("named " << named << ", persist_every " << persist_every);
  const std::string second_name = named ? "two" : "";
  Job job(20s, persist_every);
  Workers first = job.start_all(named ? "one" : "");
  job.train(1, 5);
  const auto vaults = job.vaults();
  Workers second = job.start_all(second_name);
  require_refused(job, second, second_name);
  // Not one generation was ended for it, and no vault was taken.
  job.train(1, job.complete(1) + 10);
  CHECK(job.vaults() == vaults);
  end(first);
}

TEST_CASE("one rank that is started twice beside a healthy job is refused, and the job goes on") {
  Job job(20s);
  Workers first = job.start_all("");
  job.train(1, 5);
  const auto twice = job.start(1, "");
  CHECK(twice->finish() == kFenced);
  CHECK_THAT(job.end_of("", 1), Contains("is running"));
  job.train(1, job.complete(1) + 10);
  end(first);
}

TEST_CASE("four ranks die while they form, and the job is started as three") {
  Job job(20s);
  job.store().set("network/run/0", "0");  // so that the first generation is number 1
  {
    Workers four;
    for (int r = 0; r < 3; ++r) four.push_back(job.start(r, ""));  // the last one never comes
    for (int r = 0; r < 3; ++r) {
      (void)job.store().wait_for("network/gen/00000000000000000001/place/" + std::to_string(r),
                                 Deadline::after(60s));
    }
    for (auto& w : four) w->kill();
  }
  Workers three = job.start_all("", 3);
  job.train(job.after(0), 5, 3);
  end(three);
}

TEST_CASE("a start that takes over has the job, and the ranks of before are told") {
  Job job(20s);
  Workers first = job.start_all("one");
  job.train(1, 5);
  Workers second = job.start_all("two", kWorld, true);
  const int newer = job.after(1);
  job.train(newer, job.complete(1) + 5);
  CHECK(std::stoi(job.note("recovered", newer, 0)) >= job.complete(1));
  for (int r = 0; r < kWorld; ++r) {
    CHECK_THAT(job.end_of("one", r), Contains("fenced: "));
    CHECK(first[static_cast<std::size_t>(r)]->finish() == kFenced);
  }
  job.train(newer, job.complete(newer) + 5);
  end(second);
}

TEST_CASE("a job that hangs is replaced, and fenced when it goes on") {
  const bool named = GENERATE(true, false);
  INFO("named " << named);
  Job job(8s);
  Workers hung = job.start_all(named ? "one" : "");
  job.train(1, 5);
  for (auto& w : hung) w->stop();
  const int reached = job.complete(1);
  Workers second = job.start_all(named ? "two" : "other");
  const int newer = job.after(1);
  job.train(newer, reached + 5);
  CHECK(std::stoi(job.note("recovered", newer, 0)) >= reached);
  for (auto& w : hung) w->signal(SIGCONT);
  for (int r = 0; r < kWorld; ++r) {
    CHECK_THAT(job.end_of(named ? "one" : "", r), Contains("fenced: "));
    CHECK(hung[static_cast<std::size_t>(r)]->finish() == kFenced);
  }
  job.train(newer, job.complete(newer) + 5);
  end(second);
}

TEST_CASE("a job whose ranks were all killed is started anew, and waits for nobody") {
  const bool named = GENERATE(true, false);
  INFO("named " << named);
  Job job(300s);  // whoever waited for signs of life would wait for 150 s
  Workers first = job.start_all(named ? "one" : "");
  job.train(1, 5);
  for (auto& w : first) w->kill();
  const int reached = job.complete(1);
  Workers second = job.start_all(named ? "two" : "");
  const int newer = job.after(1);
  CHECK(std::stoi(job.note("recovered", newer, 0)) >= reached);
  job.train(newer, reached + 5);
  end(second);
}
