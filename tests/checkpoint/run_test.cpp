// Checkpointer::run(): what it does for a trainer, and how it ends. tests/examples kills real ranks
// in it, at every point.
#include <barrier>
#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::require;
using ms::test::run_ranks;

/// One weight on each rank; a step adds the sum of what all ranks have to add: rank + 1 each.
struct Trainer {
  ms::Tensor weight = ms::Tensor::zeros({1}, ms::DType::kF32);
  ms::Dict state{{"weight", weight}};
  std::vector<std::uint64_t> numbers;  ///< Of the steps that were trained.

  void step(ms::RunStep& step, int rank) {
    numbers.push_back(step.number());
    float add = static_cast<float>(rank + 1);
    ms::collectives::all_reduce(step.group(), std::span(&add, 1), ms::collectives::ReduceOp::kSum);
    step.before_update();
    weight.data<float>()[0] += add;
  }
  [[nodiscard]] float value() const { return weight.data<float>()[0]; }
};

std::string text_of(const std::vector<std::uint64_t>& numbers) {
  std::string text;
  for (const auto n : numbers) text += (text.empty() ? "" : " ") + std::to_string(n);
  return text;
}

}  // namespace

TEST_CASE("run() trains the steps that are left, stages as asked, and finishes the job") {
  const bool overlap = GENERATE(false, true);
  InProcessJob job(1);
  Trainer t;
  {
    ms::Checkpointer ckpt(job.options(0));
    const auto body = [&](ms::RunStep& step) { t.step(step, 0); };
    CHECK(ckpt.run(t.state, 5, body, {.stage_every = 2, .overlap = overlap, .finish = false}) == 5);
    CHECK(text_of(t.numbers) == "0 1 2 3 4");
    CHECK(ckpt.stats().complete == 4);  // 0, 2, 4 and the last one
    // In the same generation it goes on where it was, without another recovery.
    CHECK(ckpt.run(t.state, 7, body, {.stage_every = 2, .overlap = overlap, .finish = false}) == 7);
    CHECK(text_of(t.numbers) == "0 1 2 3 4 5 6");
  }
  // Another start finds everything trained.
  Trainer again;
  ms::Checkpointer ckpt(job.options(0));
  CHECK(ckpt.run(again.state, 7, [&](ms::RunStep& step) { again.step(step, 0); }) == 7);
  CHECK(again.numbers.empty());
  CHECK(again.value() == 7);
  CHECK(job.disk().list("/vault").empty());
}

TEST_CASE("with overlap a body that forgets before_update() is told so at its first step") {
  InProcessJob job(1);
  ms::Checkpointer ckpt(job.options(0));
  Trainer t;
  int calls = 0;
  CHECK_THROWS_WITH(ckpt.run(t.state, 5, [&](ms::RunStep&) { ++calls; }, {.overlap = true}),
                    contains_text("invalid state") && contains_text("before_update()"));
  CHECK(calls == 1);
}

TEST_CASE("stop() ends a run after its step, which is complete") {
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    Trainer t;
    const auto steps = ckpt.run(t.state, 100,
                                [&](ms::RunStep& step) {
                                  t.step(step, rank);
                                  if (t.value() > 8) step.stop();
                                },
                                {.stage_every = 50, .finish = false});
    require(steps == 3 && t.value() == 9, "three steps of 3 each");
    require(ckpt.stats().complete == 2, "step 0 and step 3 are complete");
  }));
}

TEST_CASE("what dies in a run is replaced, and all end with the same bits") {
  const int world = GENERATE(2, 3);
  const std::uint64_t dies_at = GENERATE(0, 1, 4, 7);
  InProcessJob job(world);
  std::vector<int> recoveries(static_cast<std::size_t>(world));
  all_good(run_ranks(all_ranks(world), [&](int rank) {
    const auto live = [&](bool to_the_end) {
      ms::Checkpointer ckpt(job.options(rank));
      Trainer t;
      ms::RunOptions options{.stage_every = 3, .overlap = true};
      options.recovered = [&](const ms::Recovered&) {
        ++recoveries[static_cast<std::size_t>(rank)];
      };
      const auto body = [&](ms::RunStep& step) {
        if (!to_the_end && step.number() == dies_at) throw std::runtime_error("dies");
        t.step(step, rank);
      };
      require(ckpt.run(t.state, 8, body, options) == 8, "eight steps");
      require(t.value() == static_cast<float>(8 * world * (world + 1) / 2), "the right sum");
    };
    if (rank == 1) {
      try {
        live(false);
        throw std::logic_error("it did not die");
      } catch (const std::runtime_error&) {  // the body's own: what a program ends with
      }
    }
    live(true);
  }));
  for (const int n : recoveries) CHECK(n == 2);
}

TEST_CASE("a rank that dies when all is trained, before all have finished, is replaced") {
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    Trainer t;
    const auto body = [&](ms::RunStep& step) { t.step(step, rank); };
    if (rank == 1) {
      ms::Checkpointer ckpt(job.options(rank));
      (void)ckpt.run(t.state, 4, body, {.finish = false});
    }
    ms::Checkpointer ckpt(job.options(rank));
    require(ckpt.run(t.state, 4, body) == 4 && t.value() == 12, "four steps of 3 each");
  }));
  CHECK(job.disk().list("/vault").empty());
}

TEST_CASE("generations that end again and again without a new step end the run") {
  InProcessJob job(1);
  ms::Checkpointer ckpt(job.options(0));
  Trainer t;
  int calls = 0;
  const auto dies = [&](ms::RunStep& step) {
    ++calls;
    if (step.number() == 3) throw ms::make_error<ms::PeerLost>("rank 7 died", 7);
    t.step(step, 0);
  };
  CHECK_THROWS_WITH(ckpt.run(t.state, 9, dies, {.stage_every = 2, .max_losses = 2}),
                    contains_text("unrecoverable") && contains_text("3 generations in a row") &&
                        contains_text("rank 7 died"));
  CHECK(calls == 4 + 2 + 2);  // 0 to 3, and twice 2 and 3
}

TEST_CASE("staged steps that fail again and again end the run on every rank at the same step") {
  InProcessJob job(2);
  std::vector<std::string> trained(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto options = job.options(rank);
    ms::FaultyFileSystem faulty(*options.file_system);
    if (rank == 1) options.file_system = &faulty;
    ms::Checkpointer ckpt(options);
    Trainer t;
    try {
      (void)ckpt.run(t.state, 50,
                     [&](ms::RunStep& step) {
                       t.step(step, rank);
                       // Its slots must grow, and from step 4 on rank 1's host has no memory for
                       // it.
                       t.state.set("more",
                                   ms::Tensor::zeros({100'000 * static_cast<int>(t.numbers.size())},
                                                     ms::DType::kF32));
                       if (step.number() >= 3) faulty.fail(ms::FileOperation::kReserve, 1, ENOSPC);
                     },
                     {.max_failed_steps = 2});
    } catch (...) {
      trained[static_cast<std::size_t>(rank)] = text_of(t.numbers);
      throw;
    }
  });
  for (const auto& error : errors) {
    CHECK_THAT(error, contains_text("unrecoverable: 3 staged steps in a row failed"));
  }
  CHECK(trained[0] == trained[1]);
}

TEST_CASE("after a rejoin() that failed every call throws why, until one succeeds") {
  InProcessJob job(2);
  std::barrier<> both(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto options = job.options(rank);
    options.forming_deadline = std::chrono::seconds(5);
    Trainer t;
    if (rank == 1) {
      {
        ms::Checkpointer ckpt(options);
        (void)ckpt.recover(t.state);
        both.arrive_and_wait();
      }
      both.arrive_and_wait();
      ms::Checkpointer ckpt(job.options(rank));
      (void)ckpt.recover(t.state);
      ckpt.finish();
      return;
    }
    ms::Checkpointer ckpt(options);
    (void)ckpt.recover(t.state);
    both.arrive_and_wait();
    std::string why;
    try {
      (void)ckpt.rejoin();
    } catch (const ms::Timeout& e) {
      why = e.what();
    }
    require(why.find("did not come: 1") != std::string::npos, "rank 1 is named: " + why);
    const auto throws_it = [&](const char* call, auto&& run) {
      try {
        run();
      } catch (const ms::Timeout& e) {
        if (e.what() == why) return;
      }
      throw std::runtime_error(std::string("not the same error: ") + call);
    };
    throws_it("stage", [&] { (void)ckpt.stage(t.state, 1); });
    throws_it("finish", [&] { ckpt.finish(); });
    throws_it("recover", [&] { (void)ckpt.recover(t.state); });
    throws_it("group", [&] { (void)ckpt.group(); });
    throws_it("held", [&] { (void)ckpt.held(1); });
    both.arrive_and_wait();
    (void)ckpt.rejoin().recover(t.state);
    ckpt.finish();
    try {
      (void)ckpt.rejoin();
      throw std::runtime_error("rejoined a finished job");
    } catch (const ms::InvalidState&) {
    }
  }));
}
