// The ranks that a bench's rank exchanges messages and images with, played by the test.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/transfer/pieces.hpp>

#include "tests/replicate/part_bench.hpp"
#include "tests/support/require.hpp"

namespace meshstage::test {

/// Links that the test plays. Threads: any may send.
class PlayedLinks final : public ControlLinks {
 public:
  explicit PlayedLinks(std::vector<int> peers = {1}) : peers_(std::move(peers)) {}
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] const std::vector<int>& peers() const noexcept override { return peers_; }
  void set_handlers(ControlHandlers given) override { handlers = std::move(given); }
  void send(int peer, std::span<const std::byte> message) override {
    const std::lock_guard lock(mutex_);
    sent_.emplace_back(peer, std::vector(message.begin(), message.end()));
    changed_.notify_all();
  }
  void close() noexcept override {}

  /// Waits for the next message that `engine` sends to `peer`, which must be an M.
  template <class M>
  M next(const replicate::Engine& engine, int peer) {
    std::unique_lock lock(mutex_);
    require(changed_.wait_for(lock, std::chrono::seconds(20), [this] { return !sent_.empty(); }),
            "nothing was sent");
    const auto [to, bytes] = std::move(sent_.front());
    sent_.pop_front();
    require(to == peer, "rank " + std::to_string(to) + " was sent a message");
    const auto message =
        protocol::decode(engine.wire, engine.rank, protocol::without_digest(bytes).value());
    const M* const it = std::get_if<M>(&message.body);
    require(it != nullptr, "another message was sent");
    return *it;
  }
  [[nodiscard]] bool nothing_sent() {
    const std::lock_guard lock(mutex_);
    return sent_.empty();
  }

  ControlHandlers handlers;

 private:
  const std::vector<int> peers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<int, std::vector<std::byte>>> sent_;
};

/// Gives the bench's generation links and a group to these ranks, and has their ends of the group.
class PlayedPeers {
 public:
  PlayedPeers(InProcessJob& job, PartBench& bench, const std::vector<int>& ranks)
      : links(std::make_shared<PlayedLinks>(ranks)), bench_(bench) {
    const int here = bench.engine.rank;
    const auto connect = [&](int rank, Transport& transport, std::vector<int> peers) {
      return transport.connect_group({.job = InProcessJob::kName,
                                      .generation = bench.engine.generation.number,
                                      .name = "data",
                                      .rank = rank,
                                      .world_size = bench.engine.world_size,
                                      .peers = std::move(peers),
                                      .store_prefix = "played"},
                                     *job.store(), Deadline::after(std::chrono::seconds(20)));
    };
    std::vector<int> all = ranks;
    all.push_back(here);
    for (const int rank : ranks) transports_[rank] = job.fabric().attach(rank);
    std::mutex mutex;
    const auto errors = run_ranks(all, [&](int rank) {
      auto group = rank == here ? connect(rank, *bench.engine.options.transport, ranks)
                                : connect(rank, *transports_.at(rank), {here});
      const std::lock_guard lock(mutex);
      (rank == here ? bench.engine.generation.data : groups_[rank]) = std::move(group);
    });
    for (const auto& error : errors) require(error.empty(), error);
    bench.engine.generation.links = links;
  }

  /// The end of that rank, for core/transfer. A bench that sends or receives nothing fails the
  /// test.
  [[nodiscard]] transfer::Link link(int rank) {
    return {*groups_.at(rank), bench_.engine.rank, 0, std::chrono::seconds(20), {}};
  }
  template <class M>
  M next(int peer) {
    return links->next<M>(bench_.engine, peer);
  }

  const std::shared_ptr<PlayedLinks> links;

 private:
  PartBench& bench_;
  std::map<int, std::shared_ptr<Transport>> transports_;
  std::map<int, std::shared_ptr<ProcessGroup>> groups_;
};

}  // namespace meshstage::test
