// The main job with ranks as threads: train, stage, replicate, lose a rank, recover.
#include <meshstage/core/checkpoint/checkpointer.hpp>

#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/tcp_store/server.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/forked.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/sanitized.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_ranks;
using ms::test::difference;
using ms::test::InProcessJob;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::state_of;

}  // namespace

TEST_CASE("one rank stages, its process ends, the next one has the newest step") {
  InProcessJob job(1);
  {
    ms::Checkpointer ckpt(job.options(0));
    ms::Dict state = state_of(0, 0);
    REQUIRE(ckpt.recover(state).step == 0);
    stage_all(ckpt, {5, 10, 15});
    REQUIRE(ckpt.stats().complete == 4);  // and step 0
  }
  ms::Checkpointer ckpt(job.options(0));
  ms::Dict state = state_of(0, 0);
  const float* where = state.at("model").at("weight").as<ms::Tensor>().data<float>();
  const auto recovered = ckpt.recover(state);
  REQUIRE(recovered.step == 15);
  REQUIRE(recovered.source == ms::Source::kOwnMemory);
  REQUIRE(difference(state, state_of(0, 15)) == "");
  // In place: the trainer's tensors are still the same memory.
  REQUIRE(state.at("model").at("weight").as<ms::Tensor>().data<float>() == where);
}

TEST_CASE("a job waits for its store as long as for its ranks, and says for what it waited") {
  InProcessJob job(1);
  auto options = job.options(0);
  std::string address;
  {
    const ms::StoreServer reserved({});
    address = reserved.address();
  }
  options.store_object = ms::open_store(address);
  options.forming_deadline = std::chrono::milliseconds(50);
  const auto began = ms::Deadline::Clock::now();
  try {
    const ms::Checkpointer ckpt(options);
    FAIL("formed without a store");
  } catch (const ms::Timeout& e) {
    CHECK_THAT(e.what(), Catch::Matchers::Contains("no store answers at " + address) &&
                             Catch::Matchers::Contains("meshstage store --listen"));
  }
  // By the job's deadline, not by the patience of 10 s that the store has with a lost connection.
  CHECK(ms::Deadline::Clock::now() - began < std::chrono::seconds(5));
}

TEST_CASE("every rank of a job that restarts has its own state of the newest complete step") {
  const int world = GENERATE(2, 3, 4, 5);
  InProcessJob job(world);
  auto errors = run_ranks(all_ranks(world), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = state_of(rank, 0);
    ms::test::require(ckpt.recover(state).step == 0, "there was something");
    stage_all(ckpt, {1, 2, 3});
  });
  for (const auto& error : errors) CHECK(error == "");
  std::vector<std::string> different(static_cast<std::size_t>(world));
  errors = run_ranks(all_ranks(world), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = state_of(rank, 0);
    const auto recovered = ckpt.recover(state);
    different[static_cast<std::size_t>(rank)] =
        difference(state, state_of(rank, 3)) + (recovered.step == 3 ? "" : "wrong step");
    stage_all(ckpt, {4});  // and it goes on
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
  for (const auto& text : different) CHECK(text == "");
  CHECK(job.disk().list("/vault").empty());  // finish() removed every vault
}

TEST_CASE("a rank whose host is gone gets its state back from its holder's memory") {
  const int world = GENERATE(2, 3, 4);
  const int lost = GENERATE(0, 1);
  InProcessJob job(world);
  std::promise<void> staged_everywhere;
  auto ready = staged_everywhere.get_future().share();
  std::atomic<int> staged{0};
  std::vector<ms::Recovered> recovered(static_cast<std::size_t>(world));
  std::vector<std::string> different(static_cast<std::size_t>(world));
  const auto go_on = [&](ms::Checkpointer& ckpt) {
    const auto rank = static_cast<std::size_t>(ckpt.rank());
    ms::Dict state = state_of(ckpt.rank(), 0);
    recovered[rank] = ckpt.recover(state);
    different[rank] = difference(state, state_of(ckpt.rank(), 10));
    stage_all(ckpt, {15, 20});
    ckpt.finish();
  };
  const auto errors = run_ranks(all_ranks(world), [&](int rank) {
    {
      ms::Checkpointer ckpt(job.options(rank));
      ms::Dict state = state_of(rank, 0);
      (void)ckpt.recover(state);
      stage_all(ckpt, {5, 10});
      if (++staged == world) staged_everywhere.set_value();
      ready.wait();
      if (rank != lost) {
        // The survivors learn who died, whatever they do next.
        bool named = false;
        try {
          for (std::uint64_t step = 11;; ++step) {
            auto staging = ckpt.stage(state_of(rank, step), step);
            staging.outcome().wait(ms::Deadline::after(std::chrono::seconds(20)));
          }
        } catch (const ms::PeerLost& e) {
          named = e.rank() == lost;
        }
        ms::test::require(named, "no PeerLost that names the dead rank");
        go_on(ckpt.rejoin());
        return;
      }
      job.fabric().kill(rank);
    }
    job.wipe(rank);
    ms::Checkpointer replacement(job.options(rank));
    go_on(replacement);
  });
  for (const auto& error : errors) CHECK(error == "");
  for (const auto& text : different) CHECK(text == "");
  for (int rank = 0; rank < world; ++rank) {
    const auto& r = recovered[static_cast<std::size_t>(rank)];
    CHECK(r.step == 10);
    CHECK(r.source == (rank == lost ? ms::Source::kHolderMemory : ms::Source::kOwnMemory));
  }
}

TEST_CASE("the child of a fork ends, whatever its parent's Checkpointer is doing") {
  InProcessJob job(1);
  auto ckpt = std::make_unique<ms::Checkpointer>(job.options(0));
  ms::Dict state = state_of(0, 0);
  REQUIRE(ckpt->recover(state).step == 0);
  auto staging = ckpt->stage(state_of(0, 5), 5);
  REQUIRE(ms::test::ends_in_forked_child([&] {
    staging = {};
    ckpt.reset();
  }));
  if (!ms::test::kSanitized) {  // exit() would look for what the child's copies leak
    static std::unique_ptr<ms::Checkpointer> global;
    global = std::move(ckpt);
    CHECK(ms::test::ends_in_forked_child([] { std::exit(0); }));  // destroys it
    ckpt = std::move(global);
  }
  // The parent's goes on.
  staging.outcome().wait(ms::Deadline::after(std::chrono::seconds(20)));
  stage_all(*ckpt, {10});
}
