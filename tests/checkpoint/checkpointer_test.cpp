// The main job with ranks as threads: train, stage, replicate, lose a rank, recover.
#include <meshstage/core/checkpoint/checkpointer.hpp>

#include <future>
#include <meshstage/core/tree/compare.hpp>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::run_ranks;

constexpr std::int64_t kElements = 5000;

/// A rank's state at a step: two tensors of which one is seen twice (a tied head), and a scalar.
ms::Dict state_of(int rank, std::uint64_t step) {
  const auto fill = [&](ms::Tensor& tensor, float bias) {
    float* data = tensor.data<float>();
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      data[i] = bias + static_cast<float>(rank * 1000) + static_cast<float>(step) +
                static_cast<float>(i) / 1024.0F;
    }
  };
  ms::Tensor weight = ms::Tensor::empty({kElements / 50, 50}, ms::DType::kF32);
  ms::Tensor bias = ms::Tensor::empty({kElements}, ms::DType::kF32);
  fill(weight, 0.25F);
  fill(bias, 0.5F);
  return ms::Dict{{"model", ms::Dict{{"weight", weight}, {"head", weight}, {"bias", bias}}},
                  {"step", static_cast<std::int64_t>(step)}};
}

std::string difference(const ms::Dict& a, const ms::Dict& b) {
  const auto found = ms::compare(ms::Value(a), ms::Value(b));
  return found ? found->describe() : "";
}

/// Stages `steps` one after the other and waits for each outcome.
void stage_all(ms::Checkpointer& ckpt, const std::vector<std::uint64_t>& steps) {
  for (const auto step : steps) {
    auto staging = ckpt.stage(state_of(ckpt.rank(), step), step);
    staging.staged().wait();
    const auto outcome = staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20)));
    if (outcome != ms::Outcome::kComplete) {
      throw ms::InvalidState("step " + std::to_string(step) + " " +
                             std::string(to_string(outcome)));
    }
  }
}

}  // namespace

TEST_CASE("one rank stages, its process ends, the next one has the newest step") {
  InProcessJob job(1);
  {
    ms::Checkpointer ckpt(job.options(0));
    ms::Dict state = state_of(0, 0);
    REQUIRE(ckpt.recover(state).step == 0);
    stage_all(ckpt, {5, 10, 15});
    REQUIRE(ckpt.stats().complete == 3);
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

TEST_CASE("every rank of a job that restarts has its own state of the newest complete step") {
  const int world = GENERATE(2, 3, 4, 5);
  InProcessJob job(world);
  auto errors = run_ranks(all_ranks(world), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = state_of(rank, 0);
    if (ckpt.recover(state).step != 0) throw ms::InvalidState("there was something");
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
        if (!named) throw ms::InvalidState("no PeerLost that names the dead rank");
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
