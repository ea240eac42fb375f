// A rank of the network tests: rank_worker FOLDER RANK SIZE DEADLINE_MS [LAUNCH [PERSIST_EVERY
// [take-over]]], LAUNCH "" for a start that nobody named. Recovers, checks every bit of what it
// got, stages step after step, and after a loss does it again. What it sees goes to the Store
// (FOLDER/store):
//   recovered/<generation>/<rank>  the step
//   complete/<generation>/<rank>   the newest step that it knows to be complete
//   lost/<generation>/<rank>       "<rank named> <kind> <CLOCK_MONOTONIC, ms>: <text>"
//   child/<rank>                   pid of the child that "fork" made
//   ended/<launch>/<rank>          the error that ended it
// Lines of its standard input: "fork", "vanish RANK", "slow MS BYTES_PER_SECOND", "meddle RANK
// HOW". Ends with its input; exit status 3 if it was fenced, 1 for any other end.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>

#include "tests/network/proxied_store.hpp"
#include "tests/support/job_steps.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using testing::ProxiedStore;

long now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

class Rank {
 public:
  Rank(const std::string& folder, int rank, int world, std::chrono::milliseconds deadline,
       const std::vector<std::string>& more)
      : plain_(std::make_shared<FileStore>(folder + "/store")),
        proxied_(std::make_shared<ProxiedStore>(plain_, rank)),
        rank_(rank) {
    options_.job = "network";
    options_.directory = folder + "/files";
    options_.vault_directory = folder + "/vaults";
    options_.deadline = deadline;
    options_.forming_deadline = 60s;
    options_.persist_every = more.size() > 1 ? std::stoul(more[1]) : 0;
    options_.take_over = more.size() > 2;
    options_.block_bytes = 4096;  // a piece is soon through a slow wire
    RankEnvironment environment;
    environment.rank = environment.local_rank = rank;
    environment.world_size = environment.local_world_size = world;
    if (!more.empty()) environment.launch = more[0];
    options_.environment = environment;
    options_.store_object = proxied_;
    input_ = std::thread([this] { listen(); });
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;
  ~Rank() { input_.join(); }

  /// For a test that waits for this process's end.
  void note_end(const Error& e) {
    plain_->set("ended/" + options_.environment->launch + "/" + std::to_string(rank_), e.what());
  }

  void run() {
    Checkpointer ckpt(options_);
    while (!ended_) {
      try {
        live(ckpt);
      } catch (const PeerLost& e) {
        note_loss(ckpt, e, "lost");
      } catch (const PeerSilent& e) {
        note_loss(ckpt, e, "silent");
      }
      if (!ended_) ckpt.rejoin();
    }
  }

 private:
  void live(Checkpointer& ckpt) {
    auto step = test::recover_fresh(ckpt).step;
    note("recovered", ckpt.generation(), std::to_string(step));
    while (!ended_) {
      std::this_thread::sleep_for(10ms);  // it trains
      ++step;
      if (test::stage_one(ckpt, step) == Outcome::kComplete) {
        note("complete", ckpt.generation(), std::to_string(step));
      }
    }
  }
  void note_loss(const Checkpointer& ckpt, const Error& e, const std::string& kind) {
    note("lost", ckpt.generation(),
         std::to_string(e.rank().value_or(-1)) + " " + kind + " " + std::to_string(now_ms()) +
             ": " + e.what());
  }
  /// Not over the proxied store: the test is to see it wherever the rank is.
  void note(const std::string& what, std::uint64_t generation, const std::string& text) {
    plain_->set(
        what + "/" + std::to_string(generation_in_run(generation)) + "/" + std::to_string(rank_),
        text);
  }

  void listen() {
    for (std::string line; std::getline(std::cin, line);) {
      std::istringstream words(line);
      std::string what, how;
      long a = 0, b = 0;
      words >> what >> a;
      if (what == "fork") fork_child();
      if (what == "vanish") proxied_->vanish(static_cast<int>(a));
      if (what == "meddle" && words >> how) proxied_->meddle(static_cast<int>(a), how);
      if (what == "slow" && words >> b) {
        proxied_->slow(std::chrono::milliseconds(a), static_cast<std::size_t>(b));
      }
    }
    ended_ = true;
  }
  /// As a data loader: it holds every descriptor of ours until the test ends it.
  void fork_child() {
    const pid_t child = ::fork();
    if (child == 0) {
      while (true) ::pause();
    }
    plain_->set("child/" + std::to_string(rank_), std::to_string(child));
  }

  std::shared_ptr<FileStore> plain_;
  std::shared_ptr<ProxiedStore> proxied_;
  const int rank_;
  CheckpointerOptions options_;
  std::atomic<bool> ended_{false};
  std::thread input_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  try {
    Rank rank(argv[1], std::stoi(argv[2]), std::stoi(argv[3]),
              std::chrono::milliseconds(std::stoi(argv[4])), {argv + 5, argv + argc});
    try {
      rank.run();
      return 0;
    } catch (const Error& e) {
      rank.note_end(e);
      std::cerr << "rank_worker " << argv[2] << ": " << e.what() << "\n";
      std::_Exit(
          dynamic_cast<const InvalidState*>(&e) != nullptr ? 3 : 1);  // its input may still be open
    }
  } catch (const Error& e) {
    std::cerr << "rank_worker " << argv[2] << ": " << e.what() << "\n";
    return 1;
  }
}
