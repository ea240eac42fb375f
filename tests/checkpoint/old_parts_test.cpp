// Parts of old images on their way between two ranks, without a job.
#include <meshstage/core/checkpoint/old_parts_impl.hpp>

#include <array>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/reshard/two_hosts.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/rank_errors.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;
using detail::OldFiles;
using detail::PartPlan;

namespace {

/// Both ranks' images, and the plan on which they agree. Rank r sits on host r.
struct TwoRanks {
  TwoRanks() {
    std::vector<std::vector<std::byte>> needs;
    for (const int rank : {0, 1}) {
      old[rank] = with_ends(hosts, rank);
      needs.push_back(PartPlan::encode(needed_by(*old[rank], now[rank], rank)));
    }
    plan.set_needs(needs);
  }
  OldFiles files(std::function<Pairs(const std::vector<int>&)> connect) {
    return {hosts.job.disk,
            directory,
            job,
            options,
            [](const std::string&) {},
            reads,
            1,
            2,
            {},
            kBlock,
            std::move(connect),
            [] {}};
  }

  /// Host h has the files of old ranks h and h + 2.
  static std::vector<std::vector<std::byte>> said() {
    const std::byte yes{1}, no{0};
    return {{yes, no, yes, no}, {no, yes, no, yes}};
  }

  TwoHosts hosts;
  std::array<CutRows::NewRank, 2> now{CutRows::NewRank(0), CutRows::NewRank(1)};
  std::array<std::unique_ptr<StepStates>, 2> old;
  PartPlan plan{said(), {{1, 9}, kBefore}};
  const std::filesystem::path directory = "/unused";
  const std::string job = "gpt";
  const ReshardOptions options;
  replicate::Reads reads;
};

/// Links that keep their handlers.
class KeptHandlers final : public ControlLinks {
 public:
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] const std::vector<int>& peers() const noexcept override { return peers_; }
  void set_handlers(ControlHandlers handlers) override {
    const std::lock_guard lock(mutex_);
    kept_ = std::move(handlers);
  }
  void send(int, std::span<const std::byte>) override {}
  void close() noexcept override {}
  [[nodiscard]] bool told() {
    const std::lock_guard lock(mutex_);
    return kept_.on_lost != nullptr;
  }
  void lose(int peer, LostReason reason) {
    const std::lock_guard lock(mutex_);
    kept_.on_lost(peer, reason, "");
  }

 private:
  std::mutex mutex_;
  ControlHandlers kept_;
  std::vector<int> peers_{1};
};

}  // namespace

TEST_CASE("ranks of two hosts exchange many small pieces, and have what they need") {
  TwoRanks both;
  InProcessFabric fabric;
  InMemoryStore store;
  CHECK(both.plan.bytes_for(0) >= 16 * kBlock);
  all_good(run_ranks({0, 1}, [&](int rank) {
    const auto transport = fabric.attach(rank);
    const auto connect = [&](const std::vector<int>& peers) {
      ConnectRequest request{"gpt", 1, "pair-links", rank, 2, peers, "gpt"};
      Pairs pairs;
      const auto by = Deadline::after(std::chrono::seconds(20));
      pairs.links = transport->connect_links(request, store, by);
      request.name = "pair-data";
      pairs.data = transport->connect_group(request, store, by);
      return pairs;
    };
    const auto at = static_cast<std::size_t>(rank);
    const auto pairs = both.plan.exchange(*both.old[at], rank, both.files(connect));
    require(pairs.has_value(), "nothing was exchanged");
    Assembly::plan(*both.old[at], both.now[at].state, rank, 2, CutRows::options()).write();
  }));
  for (const auto& now : both.now) now.check();
}

TEST_CASE("a link that is lost ends the exchange, also where the group notices nothing") {
  TwoRanks both;
  InProcessFabric fabric;
  InMemoryStore store;
  const auto links = std::make_shared<KeptHandlers>();
  std::shared_ptr<ProcessGroup> groups[2];
  all_good(run_ranks({0, 1}, [&](int rank) {  // rank 1 will not send
    groups[rank] =
        fabric.attach(rank)->connect_group({"gpt", 1, "pair-data", rank, 2, {1 - rank}, "gpt"},
                                           store, Deadline::after(std::chrono::seconds(20)));
  }));
  const LostReason reason = GENERATE(LostReason::kEndOfFile, LostReason::kSilent);
  const auto files = both.files([&](const std::vector<int>&) { return Pairs{links, groups[0]}; });
  std::string said;
  std::thread waits([&] {
    try {
      (void)both.plan.exchange(*both.old[0], 0, files);
    } catch (const PeerLost& e) {
      said = e.what();
    }
  });
  while (!links->told()) std::this_thread::yield();
  links->lose(1, LostReason::kClosed);  // a rank that is through closes its links
  links->lose(1, reason);
  waits.join();
  CHECK_THAT(said, Contains("the connection to rank 1 ended: " + std::string(to_string(reason))));
  links->lose(1, reason);  // the links may outlive the call
}

TEST_CASE("what no rank has any more ends the generation, and so does what makes no sense") {
  const std::byte yes{1}, no{0};
  const std::vector<std::vector<std::byte>> one_is_missing{{yes, no}, {yes, no}},
      too_short{{yes}, {}};
  try {
    PartPlan plan(one_is_missing, {{1, 9}, 2});
    FAIL("nothing was thrown");
  } catch (const PeerLost& e) {
    CHECK_THAT(e.what(), Contains("no rank has a sound image of old rank 1 of 2"));
    CHECK(!e.rank());
  }
  CHECK_THROWS_AS(PartPlan(too_short, {{1, 9}, 2}), PeerLost);
  TwoRanks both;
  auto needs = PartPlan::encode(std::vector<detail::ImagePart>{{1, 0, 4096}});
  needs[0] = std::byte{77};
  CHECK_THROWS_AS(both.plan.set_needs(std::vector<std::vector<std::byte>>{needs, needs}), PeerLost);
  needs.pop_back();
  CHECK_THROWS_AS(both.plan.set_needs(std::vector<std::vector<std::byte>>{needs, needs}), PeerLost);
  CHECK_THROWS_AS(both.plan.add_ends(*both.old[0], std::vector<std::vector<std::byte>>{needs}),
                  PeerLost);
}
