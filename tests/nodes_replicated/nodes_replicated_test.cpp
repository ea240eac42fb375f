// What a holder has is its ward's state: plain, DTensors, ShardedTensors. The names are those of
// the tests of PyTorch's replication stager, whose cases these are.
#include <atomic>
#include <future>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/dtensor/arithmetic.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/mesh/partners.hpp>
#include <meshstage/sharded/node.hpp>

#include "tests/nodes_replicated/node_states.hpp"
#include "tests/nodes_replicated/sharded_job.hpp"
#include "tests/sharded/shards.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/outcomes.hpp"
#include "tests/support/ranks_on_mesh.hpp"
#include "tests/support/require.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;
using Catch::Matchers::EndsWith;

namespace {

constexpr int kWorld = 4;
const std::vector<std::string> kSame(kWorld);

int partner(int rank) { return (rank + kWorld / 2) % kWorld; }

// How what rank r holds differs from what its ward staged.
std::vector<std::string> differences(const std::vector<std::vector<Replica>>& held,
                                     const StateOf& state_of, std::uint64_t step) {
  std::vector<std::string> different;
  for (int rank = 0; rank < kWorld; ++rank) {
    const auto& mine = held[static_cast<std::size_t>(rank)];
    REQUIRE(mine.size() == 1);
    CHECK(mine[0].owner == partner(rank));
    CHECK(mine[0].id.step == step);
    different.push_back(difference(state_of(partner(rank), step), mine[0].state));
  }
  return different;
}

}  // namespace

TEST_CASE("replication_basic: each of 4 ranks holds the nested dict of rank (r + W/2) mod W") {
  InProcessJob job(kWorld);
  const auto held = stage_on_all(job, nested_state, no_types, {5, 10});
  CHECK(differences(held, nested_state, 10) == kSame);
  // The replica is as good as the original: tied as it was, and writable memory of its own.
  const auto layers = held[0][0].state.at("model").at("layers");
  const auto weight = layers.at(0).at("weight").as<Tensor>();
  CHECK(layers.at(1).at("weight").as<Tensor>().storage() == weight.storage());
  weight.data<float>()[0] = 77;
  // A host is lost with the memory of its rank: it gets its state back from where it is held.
  job.wipe(1);
  std::vector<Source> sources;
  CHECK(recover_on_all(job, nested_state, 10, sources) == kSame);
  CHECK(sources == std::vector<Source>{Source::kOwnMemory, Source::kHolderMemory,
                                       Source::kOwnMemory, Source::kOwnMemory});
}

TEST_CASE("replication_dtensors: Shard, Replicate and a plain scalar are the partner's") {
  InProcessJob job(kWorld);
  const auto held = stage_on_all(job, dtensor_state, dtensors, {3});
  CHECK(differences(held, dtensor_state, 3) == kSame);
  for (int rank = 0; rank < kWorld; ++rank) {
    INFO("rank " << rank);
    const Value& state = held[static_cast<std::size_t>(rank)][0].state;
    const Dict owners = dtensor_state(partner(rank), 3);
    for (const char* name : {"sharded", "replicated", "both", "empty"}) {
      INFO(name);
      const auto copy = dtensor::from_value(state.at(name));
      const auto original = dtensor::from_value(owners.at(name));
      CHECK(copy.rank() == partner(rank));
      CHECK(copy.spec() == original.spec());
      CHECK(copy.local_shard().offset == original.local_shard().offset);
      CHECK(same_bits(copy.to_local(), original.to_local()));
    }
    CHECK(state.at("tied").as<NodePtr>() == state.at("both").as<NodePtr>());
    CHECK(state.at("scalar").as<double>() == 10.5);
  }
  job.wipe(2);
  std::vector<Source> sources;
  CHECK(recover_on_all(job, dtensor_state, 3, sources) == kSame);
  CHECK(sources[2] == Source::kHolderMemory);
}

TEST_CASE(
    "replication_sharded_tensors: the partner's shards, with holder's rank and owner's kept") {
  InProcessJob job(kWorld);
  const auto held = stage_on_all(job, sharded_state, sharded_tensors, {3});
  CHECK(differences(held, sharded_state, 3) == kSame);
  for (int rank = 0; rank < kWorld; ++rank) {
    INFO("rank " << rank);
    const auto copy =
        sharded::from_value(held[static_cast<std::size_t>(rank)][0].state.at("embedding"));
    const auto original = sharded::from_value(sharded_state(partner(rank), 3).at("embedding"));
    CHECK(copy.holder() == rank);
    CHECK(copy.owner() == partner(rank));
    CHECK(copy.metadata() == original.metadata());  // the owners' placements, of all shards
    REQUIRE(copy.local_shards().size() == original.local_shards().size());
    for (std::size_t i = 0; i < copy.local_shards().size(); ++i) {
      const auto& here = copy.local_shards()[i];
      const auto& there = original.local_shards()[i];
      CHECK(here.metadata.placement == ShardPlacement{rank, kCpu});
      CHECK(here.metadata.offsets == there.metadata.offsets);
      CHECK(here.metadata.sizes == there.metadata.sizes);
      CHECK(same_bits(here.tensor, there.tensor));
    }
  }
  job.wipe(0);
  std::vector<Source> sources;
  CHECK(recover_on_all(job, sharded_state, 3, sources) == kSame);
  CHECK(sources[0] == Source::kHolderMemory);
}

TEST_CASE("A rank holds what policy says: with 2 copies two ranks have each image") {
  const int world = 5;
  InProcessJob job(world);
  const Holders holders =
      make_holders(FailureDomains::uniform(world, 1), {PartnerPolicy::kRing, 2});
  const auto held = stage_on_all(job, nested_state, no_types, {4},
                                 [&](CheckpointerOptions& o) { o.holders = holders; });
  for (int rank = 0; rank < world; ++rank) {
    const auto& mine = held[static_cast<std::size_t>(rank)];
    std::vector<int> wards{(rank + 3) % world, (rank + 4) % world};
    std::sort(wards.begin(), wards.end());
    REQUIRE(mine.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(mine[i].owner == wards[i]);
      CHECK(difference(nested_state(wards[i], 4), mine[i].state) == "");
    }
  }
}

TEST_CASE("held() says whom a rank holds, from step 0 on") {
  InProcessJob job(kWorld);
  std::vector<std::string> said(kWorld);
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    auto& text = said[static_cast<std::size_t>(rank)];
    const auto say = [&](const std::function<void()>& what) {
      try {
        what();
      } catch (const Error& e) {
        text += std::string(to_string(e.kind())) + ": " + e.what() + "\n";
      }
    };
    Checkpointer ckpt(job.options(rank));
    say([&] { (void)ckpt.held(partner(rank)); });
    Dict state = nested_state(rank, 0);
    (void)ckpt.recover(state);
    say([&] { (void)ckpt.held(rank); });
    const auto first = ckpt.held(partner(rank));  // a new job's recover() completes step 0
    text += "step " + std::to_string(first.id.step) +
            difference(nested_state(partner(rank), 0), first.state) + "\n";
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
  CHECK_THAT(said[1], Contains("held() before recover()"));
  CHECK_THAT(said[1], Contains("rank 1 holds no replica of rank 1; its wards are 3"));
  CHECK_THAT(said[1], EndsWith("\nstep 0\n"));
}

TEST_CASE("What is held is the newest complete step, while the next one is being staged") {
  InProcessJob job(2);
  std::vector<std::vector<std::uint64_t>> seen(2);
  const auto errors = run_ranks({0, 1}, [&](int rank) {
    Checkpointer ckpt(job.options(rank));
    Dict state = nested_state(rank, 0);
    (void)ckpt.recover(state);
    for (std::uint64_t step = 1; step <= 20; ++step) {
      auto staging = ckpt.stage(nested_state(rank, step), step);
      if (step > 1) {  // the step before is complete here; this one may be by now
        const auto replica = ckpt.held(1 - rank);
        if (!difference(nested_state(1 - rank, replica.id.step), replica.state).empty()) {
          test::fail_test("a mixed replica of step " + std::to_string(replica.id.step));
        }
        seen[static_cast<std::size_t>(rank)].push_back(step - replica.id.step);
      }
      test::require_complete(staging, in_time());
    }
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
  for (const auto& behind : seen) {
    CHECK(behind.size() == 19);
    for (const auto n : behind) CHECK(n <= 1);
  }
}

TEST_CASE("finish() waits for what a thread still reads from a slot, and leaves no vault") {
  InProcessJob job(kWorld);
  const auto state = [](int rank, std::uint64_t step) {
    return Dict{{"w", Tensor::arange<float>(5000)}, {"r", rank}, {"s", static_cast<double>(step)}};
  };
  {
    std::vector<std::unique_ptr<Checkpointer>> stay(kWorld);
    const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
      auto& ckpt = stay[static_cast<std::size_t>(rank)];
      ckpt = std::make_unique<Checkpointer>(job.options(rank));
      Dict dict = state(rank, 0);
      (void)ckpt->recover(dict);
      stage_and_wait(*ckpt, state(rank, 1), 1);
    });
    for (const auto& error : errors) CHECK(error == "");
  }
  job.wipe(1);
  std::promise<void> removing;  // rank 3 has begun to remove its vault, which must not be
  auto removed = removing.get_future().share();
  std::atomic<bool> too_early{false};
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    auto o = job.options(rank);
    if (rank == 3) {  // it has rank 1's replica
      o.observer = [&](const PointEvent& e) {
        if (e.point == Point::kFinishing) removing.set_value();
        if (e.point == Point::kChunkSent && e.peer == 1 && e.chunk == e.chunks) {
          // All has arrived, and this thread does not know it yet.
          too_early =
              removed.wait_for(std::chrono::milliseconds(300)) != std::future_status::timeout;
        }
      };
    }
    Checkpointer ckpt(o);
    Dict dict = state(rank, 0);
    (void)ckpt.recover(dict);
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
  CHECK_FALSE(too_early);
  CHECK(job.disk().list("/vault").empty());
}
