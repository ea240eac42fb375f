// Ranks over NCCL as processes that share one device: every operation compared with the host, ranks
// killed and stopped in the middle of collectives, new groups in the processes that survive. On the
// fakes; on a real GPU where MESHSTAGE_TEST_CUDA is "real".
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/store.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace std::chrono_literals;
using meshstage::Deadline;
using meshstage::FileStore;
using meshstage::testing::TemporaryFolder;
using meshstage::testing::WorkerProcess;
using Clock = std::chrono::steady_clock;

bool real() {
  const char* const variable = std::getenv("MESHSTAGE_TEST_CUDA");
  return variable != nullptr && std::string(variable) == "real";
}

/// A worker, and how to ask it something.
class Rank {
 public:
  Rank(const std::string& store, std::string name)
      : store_(store), name_(std::move(name)), process_(program(), arguments(store, name_)) {}

  void tell(const std::string& line) {
    process_.tell(line);
    ++asked_;
  }
  /// The answer to what was told last.
  [[nodiscard]] std::string answer() {
    return store_.wait_for(name_ + "/" + std::to_string(asked_), Deadline::after(120s));
  }
  void wait_until_looping() {
    (void)store_.wait_for(name_ + "/looping", Deadline::after(120s));
    store_.remove(name_ + "/looping", Deadline::after(10s));
  }
  WorkerProcess& process() { return process_; }

 private:
  static std::string program() { return meshstage::testing::own_folder() + "/nccl_rank_worker"; }
  static std::vector<std::string> arguments(const std::string& store, const std::string& name) {
    std::vector<std::string> all{store, name};
    if (!real()) {
      all.emplace_back(MESHSTAGE_FAKE_CUDA);
      all.emplace_back(MESHSTAGE_FAKE_NCCL);
    }
    return all;
  }
  FileStore store_;
  const std::string name_;
  WorkerProcess process_;
  int asked_ = 0;
};

/// Some ranks, by number; their processes are renamed when they are replaced.
class Ranks {
 public:
  explicit Ranks(int count) : ranks_(static_cast<std::size_t>(count)) {
    for (int r = 0; r < count; ++r) replace(r);
  }
  void replace(int rank) {
    at(rank).reset();
    at(rank) = std::make_unique<Rank>(folder_.path(), "process-" + std::to_string(++made_));
  }
  Rank& operator[](int rank) { return *at(rank); }
  [[nodiscard]] int size() const { return static_cast<int>(ranks_.size()); }

  /// Every rank but `except` gets the command (with its own number at the end, if it wants one).
  void tell(const std::string& line, bool numbered = false, int except = -1) {
    for (int r = 0; r < size(); ++r) {
      if (r != except) at(r)->tell(numbered ? line + " " + std::to_string(r) : line);
    }
  }
  void expect_ok(const std::string& what, int except = -1) {
    for (int r = 0; r < size(); ++r) {
      if (r == except) continue;
      INFO(what << ", rank " << r << " of " << size());
      CHECK(at(r)->answer() == "ok");
    }
  }
  void form(int generation) {
    tell("form " + std::to_string(generation) + " " + std::to_string(size()), true);
    expect_ok("form " + std::to_string(generation));
  }
  void check() {
    tell("check");
    expect_ok("check");
  }
  void close() {
    tell("close");
    expect_ok("close");
  }
  void loop(std::chrono::milliseconds deadline) {
    tell("loop " + std::to_string(deadline.count()));
    for (const auto& rank : ranks_) rank->wait_until_looping();
  }
  /// Each survivor's loop ends within the bound, with an error that begins so.
  void expect_end(int victim, Clock::time_point since, std::chrono::milliseconds bound,
                  const std::string& said) {
    for (int r = 0; r < size(); ++r) {
      if (r == victim) continue;
      const auto error = at(r)->answer();
      const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - since);
      INFO("rank " << r << " after " << took.count() << " ms: " << error);
      CHECK(error.find(said) == 0);
      CHECK(took <= bound);
      if (real()) WARN("rank " << r << "/" << size() << " left after " << took.count() << " ms");
    }
  }

 private:
  std::unique_ptr<Rank>& at(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }
  TemporaryFolder folder_;
  int made_ = 0;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace

TEST_CASE("nccl ranks: every operation gives what the host computes") {
  for (const int size : {2, 3, 4}) {
    Ranks ranks(size);
    ranks.form(1);
    ranks.check();
    ranks.close();
    ranks.form(2);
    ranks.check();
    ranks.close();
  }
}

TEST_CASE("nccl ranks: survivors of a kill leave and a new process joins them") {
  for (const int size : {2, 3, 4}) {
    for (const int victim : {size - 1, 0}) {
      Ranks ranks(size);
      ranks.form(1);
      ranks.loop(60s);
      const auto began = Clock::now();
      ranks[victim].process().kill();
      ranks.expect_end(victim, began, 5s, "peer lost");
      ranks.tell("close", false, victim);
      ranks.expect_ok("close", victim);
      ranks.replace(victim);
      ranks.form(2);
      ranks.check();
      ranks.close();
    }
  }
}

TEST_CASE("nccl ranks: a stopped rank ends the group by a deadline and is replaced") {
  struct Case {
    std::chrono::milliseconds deadline, bound;
  };
  // The collective's deadline comes first, or the silence of the link (2 s).
  for (const auto& one : {Case{1s, 4s}, Case{60s, 8s}}) {
    Ranks ranks(3);
    ranks.form(1);
    ranks.loop(one.deadline);
    const auto began = Clock::now();
    ranks[1].process().stop();
    ranks.expect_end(1, began, one.bound, "peer silent");
    ranks.tell("close", false, 1);
    ranks.expect_ok("close", 1);
    ranks[1].process().kill();
    ranks.replace(1);
    ranks.form(2);
    ranks.check();
    ranks.close();
  }
}

TEST_CASE("nccl ranks: generations that end in order and by abort leave nothing behind") {
  Ranks ranks(2);
  const int count = real() ? 24 : 100;
  ranks.tell("generations 1 " + std::to_string(count) + " 2", true);
  ranks.expect_ok("generations");
}
