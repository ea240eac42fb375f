// Real ranks over sockets and Gloo, and what a network and a process can do to them short of an
// orderly end: sockets that outlive their process, a host that vanishes, a slow wire, a wire that
// changes what passes.
#include <chrono>
#include <csignal>
#include <filesystem>
#include <memory>
#include <sstream>
#include <thread>

#include "tests/network/rank_notes.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;

long now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Lost {
  int rank = -1;
  std::string kind;
  long when = 0;
  std::string text;
};

class Job : public RankNotes {
 public:
  explicit Job(std::chrono::milliseconds deadline) : deadline_(deadline) {
    std::filesystem::create_directory(folder_.path() + "/vaults");
    for (int r = 0; r < kWorld; ++r) workers_.push_back(start(r));
  }
  [[nodiscard]] std::unique_ptr<WorkerProcess> start(int rank) const {
    return std::make_unique<WorkerProcess>(
        own_folder() + "/rank_worker",
        std::vector{folder_.path(), std::to_string(rank), std::to_string(kWorld),
                    std::to_string(deadline_.count())});
  }
  std::unique_ptr<WorkerProcess>& worker(int rank) {
    return workers_[static_cast<std::size_t>(rank)];
  }
  void tell_all(const std::string& line) {
    for (auto& w : workers_) w->tell(line);
  }
  Lost lost(int generation, int rank) {
    std::istringstream text(note("lost", generation, rank));
    Lost lost;
    text >> lost.rank >> lost.kind >> lost.when;
    std::getline(text, lost.text);
    return lost;
  }
  /// The step that each rank recovered in the generation; all the same.
  int recovered(int generation) {
    const int step = std::stoi(note("recovered", generation, 0));
    for (int r = 1; r < kWorld; ++r) CHECK(std::stoi(note("recovered", generation, r)) == step);
    return step;
  }
  void finish() {
    for (auto& w : workers_) w->end_input();
    for (auto& w : workers_) CHECK(w->finish() == 0);
  }

 private:
  const std::chrono::milliseconds deadline_;
  std::vector<std::unique_ptr<WorkerProcess>> workers_;
};

/// A child of a worker, not ours to wait for: ended in any case.
struct OthersChild {
  pid_t pid;
  explicit OthersChild(pid_t p) : pid(p) {}
  OthersChild(const OthersChild&) = delete;
  OthersChild& operator=(const OthersChild&) = delete;
  ~OthersChild() { ::kill(pid, SIGKILL); }
};

}  // namespace

TEST_CASE("a forked child that holds the sockets of a killed rank delays nobody") {
  // Silence would be noticed after 30 s.
  Job job(30s);
  job.train(1, 3);
  for (const int victim : {0, 2}) {
    const int generation = victim == 0 ? 1 : 2;
    INFO("victim " << victim);
    job.worker(victim)->tell("fork");
    const OthersChild child(
        std::stoi(job.store().wait_for("child/" + std::to_string(victim), Deadline::after(30s))));
    job.train(generation, generation * 3);
    const long killed = now_ms();
    job.worker(victim)->kill();
    for (int r = 0; r < kWorld; ++r) {
      if (r == victim) continue;
      const auto lost = job.lost(generation, r);
      INFO("rank " << r << ": " << lost.text);
      CHECK(lost.rank == victim);
      CHECK(lost.kind == "lost");
      CHECK(lost.when - killed < 10000);
    }
    // The child lives, and with it every socket; still its parent's place is taken.
    REQUIRE(::kill(child.pid, 0) == 0);
    job.worker(victim) = job.start(victim);
    CHECK(job.recovered(generation + 1) >= generation * 3);
    job.train(generation + 1, (generation + 1) * 3);
  }
  job.finish();
}

TEST_CASE(
    "a vanished host is noticed by its silence, named, replaced, and fenced if it comes back") {
  constexpr auto kDeadline = 5000ms;
  Job job(kDeadline);
  job.train(1, 3);
  const long vanished = now_ms();
  job.tell_all("vanish 2");
  for (const int r : {0, 1, 3}) {
    const auto lost = job.lost(1, r);
    INFO("rank " << r << ": " << lost.text);
    CHECK(lost.rank == 2);
    CHECK(lost.when - vanished < 6 * kDeadline.count());
  }
  const auto zombie = std::move(job.worker(2));
  job.worker(2) = job.start(2);
  CHECK(job.recovered(2) >= 3);
  job.train(2, 6);
  CHECK(zombie->ends_within(60s));  // it never reached the others again
  CHECK(zombie->finish() != 0);
  job.finish();
}

TEST_CASE(
    "a slow wire is no death: steps are complete, though each takes longer than the silence") {
  constexpr auto kDeadline = 3000ms;
  Job job(kDeadline);
  job.train(1, 3);
  // An image of 60 KB takes four seconds. Each of its pieces, a heartbeat and a message take less
  // than the deadline: who is silent for longer is dead.
  job.tell_all("slow 60 15000");
  const int step = std::stoi(job.note("complete", 1, 0));
  const long slowed = now_ms();
  job.train(1, step + 3);
  CHECK(now_ms() - slowed > 2 * kDeadline.count());  // the images pass there, too
  job.tell_all("slow 0 0");
  job.train(1, step + 10);
  job.finish();
}

TEST_CASE(
    "a wire that flips, drops, repeats or swaps control messages is noticed, and nobody dies") {
  Job job(5000ms);
  int generation = 1;
  int step = 3;
  for (const char* how : {"flip", "drop", "repeat", "swap"}) {
    INFO(how);
    job.train(generation, step);
    job.worker(1)->tell(std::string("meddle 0 ") + how);  // what rank 1 sends to rank 0
    for (int r = 0; r < kWorld; ++r) {
      const auto lost = job.lost(generation, r);
      INFO("rank " << r << ": " << lost.text);
      CHECK(lost.kind == "lost");
      CHECK(lost.rank == -1);  // both ends live
      CHECK_THAT(lost.text, Contains("broken link between rank"));
      CHECK_THAT(lost.text, Contains(std::string(how) == "flip" ? "damaged frame" : "out of turn"));
    }
    ++generation;
    CHECK(job.recovered(generation) >= step);
    step += 6;
  }
  job.train(generation, step);
  job.finish();
}
