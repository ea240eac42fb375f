// The risk on which replication over Gloo rests: in one process a group can be aborted, quiesced
// and formed anew as often as peers die, stop and wake again, nothing is left behind, and no byte
// is written into an old receive target. Rank 0 is this process; ranks 1 and 2 are workers.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/comm/gloo/group.hpp>
#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/own_process.hpp"

namespace {

using namespace std::chrono_literals;
using meshstage::Deadline;
using meshstage::ProcessGroup;
using meshstage::Transfer;
using meshstage::testing::WorkerProcess;

constexpr int kWorld = 3;
constexpr std::size_t kChunk = std::size_t{1} << 20;
constexpr std::byte kCanary{0xA5};
using Targets = std::array<std::array<std::vector<std::byte>, 2>, kWorld>;

/// Streams both ways with one peer until the group is aborted.
class Stream {
 public:
  Stream(ProcessGroup& group, int peer, std::array<std::vector<std::byte>, 2>& targets)
      : group_(group), peer_(peer), targets_(targets) {
    source_.assign(kChunk, std::byte{0});
    receiver_ = std::thread([this] { receive(); });
    sender_ = std::thread([this] { send(); });
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { join(); }
  void join() {
    if (receiver_.joinable()) receiver_.join();
    if (sender_.joinable()) sender_.join();
  }
  void wait_for_chunks(int count) const {
    for (int seen = received_; seen < count && !ended_; seen = received_) received_.wait(seen);
  }
  [[nodiscard]] bool wrong_bytes() const { return wrong_; }
  [[nodiscard]] int received() const { return received_; }
  [[nodiscard]] std::string error() const { return error_; }
  // Kept until the group is closed, so that operations are pending while it closes.
  std::array<std::unique_ptr<Transfer>, 2> posted;

 private:
  void receive() {
    try {
      for (std::size_t i = 0;; i = 1 - i) {
        if (posted[i]) {
          posted[i]->wait(Deadline::after(60s));  // Gloo alone does not notice a death
          const auto value = static_cast<std::byte>(peer_);
          if (targets_[i].front() != value || targets_[i].back() != value) wrong_ = true;
          ++received_;
          received_.notify_all();
        }
        posted[i] = group_.receive(peer_, 1, targets_[i]);
      }
    } catch (const meshstage::Error& e) {
      error_ = e.what();
    }
    ended_ = true;
    ++received_;
    received_.notify_all();
  }
  void send() {
    try {
      while (true) group_.send(peer_, 2, source_)->wait(Deadline::after(60s));
    } catch (const meshstage::Error&) {
      // as the receiver's
    }
  }
  ProcessGroup& group_;
  const int peer_;
  std::array<std::vector<std::byte>, 2>& targets_;
  std::vector<std::byte> source_;
  std::atomic<int> received_{0};
  std::atomic<bool> ended_{false};
  std::atomic<bool> wrong_{false};
  std::string error_;
  std::thread receiver_;
  std::thread sender_;
};

meshstage::ConnectRequest request(int generation) {
  meshstage::ConnectRequest r;
  r.job = "risk";
  r.generation = static_cast<std::uint64_t>(generation);
  r.name = "data";
  r.rank = 0;
  r.world_size = kWorld;
  r.peers = {1, 2};
  r.store_prefix = "gen/" + std::to_string(generation);
  return r;
}

bool all_canaries(const Targets& targets) {
  for (const auto& peer : targets) {
    for (const auto& t : peer) {
      if (!std::all_of(t.begin(), t.end(), [](std::byte b) { return b == kCanary; })) return false;
    }
  }
  return true;
}

enum class Fault { kKill, kStop, kStopWhileConnecting, kAbortOnly, kKillBoth };

}  // namespace

TEST_CASE("a Gloo group is aborted, closed and formed anew 200 times while peers die and wake") {
  constexpr int kRounds = 200;
  const meshstage::testing::TemporaryFolder folder;
  meshstage::FileStore store(folder.path());
  const auto& module = meshstage::gloo_module_table();
  const std::string program = meshstage::testing::own_folder() + "/gloo_stream_worker";
  const auto start = [&](int rank) {
    return std::make_unique<WorkerProcess>(
        program, std::vector{folder.path(), std::to_string(rank), std::to_string(kWorld)});
  };
  std::array<std::unique_ptr<WorkerProcess>, kWorld> workers;
  std::unique_ptr<WorkerProcess> zombie;  // stopped in the round before, woken in this one
  std::array<Targets, 2> targets;         // this round's and the round's before
  for (auto& set : targets) {
    for (auto& peer : set) {
      for (auto& t : peer) t.assign(kChunk, kCanary);
    }
  }
  const int threads = meshstage::testing::count_threads();
  const int descriptors = meshstage::testing::count_network_descriptors();
  std::array<int, 5> faults_seen{};
  long chunks = 0;

  for (int round = 1; round <= kRounds; ++round) {
    INFO("round " << round);
    const auto fault = static_cast<Fault>(round % 5);
    ++faults_seen[static_cast<std::size_t>(fault)];
    const int victim = 1 + (round / 5) % 2;
    for (int r = 1; r < kWorld; ++r) {
      auto& worker = workers[static_cast<std::size_t>(r)];
      if (!worker) worker = start(r);
      worker->tell("form " + std::to_string(round));
    }
    auto& unlucky = workers[static_cast<std::size_t>(victim)];
    Targets& current = targets[static_cast<std::size_t>(round % 2)];
    std::shared_ptr<ProcessGroup> group;
    if (fault == Fault::kStopWhileConnecting) {
      // Its partner is stopped, somewhere on the way; a stop from outside must get us out.
      unlucky->signal(SIGSTOP);
      std::stop_source stop;
      std::thread impatient([&] {
        // As the links would: once the other peer has published its address it is under way.
        store.wait_for(
            "gen/" + std::to_string(round) + "/data/" + std::to_string(3 - victim) + "/0",
            Deadline::after(20s));
        stop.request_stop();
      });
      std::string error;
      try {
        group = connect_gloo_group(module, "127.0.0.1", request(round), store, Deadline::after(20s),
                                   stop.get_token());
        group->close();  // the peer was quicker than the signal
      } catch (const meshstage::Cancelled& e) {
        error = e.what();
      }
      impatient.join();
      REQUIRE((group || !error.empty()));
      zombie = std::move(unlucky);
    } else {
      group = connect_gloo_group(module, "127.0.0.1", request(round), store, Deadline::after(20s));
      if (zombie) zombie->signal(SIGCONT);  // wakes in the middle of our new generation
      std::array<std::unique_ptr<Stream>, kWorld> streams;
      for (int r = 1; r < kWorld; ++r) {
        const auto i = static_cast<std::size_t>(r);
        streams[i] = std::make_unique<Stream>(*group, r, current[i]);
      }
      for (int r = 1; r < kWorld; ++r) streams[static_cast<std::size_t>(r)]->wait_for_chunks(3);
      if (fault == Fault::kKill) unlucky->kill();
      if (fault == Fault::kStop) unlucky->signal(SIGSTOP);
      if (fault == Fault::kKillBoth) {
        for (int r = 1; r < kWorld; ++r) workers[static_cast<std::size_t>(r)]->kill();
      }
      group->abort(std::make_exception_ptr(meshstage::PeerLost("as the links would say")));
      for (auto& s : streams) {
        if (s) s->join();
      }
      group->close();
      for (int r = 1; r < kWorld; ++r) {
        const auto& s = *streams[static_cast<std::size_t>(r)];
        INFO("rank " << r << ": " << s.error());
        REQUIRE(s.received() >= 3);
        REQUIRE_FALSE(s.wrong_bytes());
        chunks += s.received();
      }
      // The group is closed: the targets are ours, while transfers and peers still exist.
      for (auto& peer : current) {
        for (auto& t : peer) std::fill(t.begin(), t.end(), kCanary);
      }
      streams = {};
      // The targets of the round before have seen this whole round, and a zombie's awakening.
      REQUIRE(all_canaries(targets[static_cast<std::size_t>((round + 1) % 2)]));
      zombie.reset();
      if (fault == Fault::kKill) unlucky.reset();
      if (fault == Fault::kStop) zombie = std::move(unlucky);
      if (fault == Fault::kKillBoth) workers = {};
    }
    REQUIRE(meshstage::testing::settle(meshstage::testing::count_threads, threads) == threads);
    REQUIRE(meshstage::testing::settle(meshstage::testing::count_network_descriptors,
                                       descriptors) == descriptors);
    REQUIRE(all_canaries(current));
    for (const auto& key : store.list("gen/")) store.remove(key);
  }
  for (auto& worker : workers) {
    if (!worker) continue;
    worker->tell("end");
    CHECK(worker->finish() == 0);
  }
  for (const int seen : faults_seen) CHECK(seen == kRounds / 5);
  CHECK(chunks > 3 * kRounds);
}
