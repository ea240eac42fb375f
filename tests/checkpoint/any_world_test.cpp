// A job that comes back with another number of ranks, and goes on from the files of before.
#include <meshstage/core/checkpoint/checkpointer.hpp>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <optional>
#include <string>
#include <vector>

#include "tests/replicate/part_images.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/changing_job.hpp"
#include "tests/support/disk_contents.hpp"
#include "tests/support/narrow_messages.hpp"
#include "tests/support/require.hpp"

namespace ms = meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

/// A first start of `world` ranks leaves these steps on disk.
void first_start(ChangingJob& job, int world, const std::vector<std::uint64_t>& steps = {10}) {
  job.start(world, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, world, 0);
    (void)ckpt.recover(state);
    for (const auto step : steps) {
      ckpt.persist_now();
      auto staging = ckpt.stage(state_at(rank, world, step), step);
      require(staging.persisted().get(ms::Deadline::after(std::chrono::seconds(20))) ==
                  ms::DiskOutcome::kEverywhere,
              "step " + std::to_string(step) + " is not on disk");
    }
    ckpt.finish();
  });
}

}  // namespace

TEST_CASE("4 ranks, then 3, 6, 1, 8 and 4: each start has what slicing gives, and goes on") {
  ChangingJob job;
  first_start(job, 4);
  std::uint64_t step = 10;
  int before = 4;
  for (const int world : {3, 6, 1, 8, 4}) {
    INFO(before << " ranks, then " << world);
    job.start(world, [&](ms::CheckpointerOptions o, int) {
      ms::Checkpointer ckpt(std::move(o));
      const auto recovered = recover_exactly(ckpt, step);
      require(recovered.old_world_size == before, std::to_string(recovered.old_world_size));
      require(recovered.source == ms::Source::kDisk, "not from disk");
      require(recovered.id == ms::ImageId{ckpt.generation(), step}, to_string(recovered.id));
      stage_exactly(ckpt, step + 10);
      ckpt.finish();
    });
    step += 10;
    // Of the files of before some may still be there: a rank may leave before it hears that all
    // have newer ones. A later start removes them.
    const auto files = job.files();
    const auto name = "step " + std::to_string(step) + " of " + std::to_string(world);
    CHECK(std::count(files.begin(), files.end(), name) == world);
    before = world;
    CHECK(job.job.disk().list("/vault").empty());
  }
  // The ranks of each start have proven a part of the files each.
  CHECK_THAT(job.job.log(), !Contains("rank 0 proves"));
}

TEST_CASE("where a step's files are damaged, or not claimed, rank 0 proves what there is") {
  ChangingJob job;
  job.change = [](ms::CheckpointerOptions& o, int) { o.keep = 2; };
  first_start(job, 4, {10, 20});
  std::uint64_t step = 20;
  SECTION("one copy of an image is damaged") {}
  SECTION("both are: the older step") { step = 10; }
  std::size_t damaged = 0;
  for (const auto& image : ms::list_images(job.job.disk(), "/disk", InProcessJob::kName)) {
    if (image.name.id.step != 20 || image.name.rank != 3) continue;
    if (step == 20 && image.name.holder) continue;
    flip(job.job.disk(), image.path, image.bytes / 2);
    ++damaged;
  }
  REQUIRE(damaged == (step == 20 ? 1 : 2));
  job.start(3, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_exactly(ckpt, step);
    stage_exactly(ckpt, 30);
    ckpt.finish();
  });
  CHECK((job.job.log().find("rank 0 proves") != std::string::npos) == (step == 10));
}

TEST_CASE("what fits one rank and not another is refused at all, and no state is touched") {
  ChangingJob job;
  first_start(job, 4);
  std::vector<std::string> said(3), later(3);
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, 3, 5);
    if (rank == 1) state.set("extra", 1);
    const ms::Dict before = state_at(rank, 3, 5);
    const auto at = static_cast<std::size_t>(rank);
    try {
      (void)ckpt.recover(state);
    } catch (const ms::StructureMismatch& e) {
      said[at] = e.what();
      require(e.path() == "extra", e.path());
    }
    if (rank == 1) state.erase("extra");
    require(difference(state, before).empty(), "touched");
    try {
      (void)ckpt.stage(state, 6);
    } catch (const ms::StructureMismatch& e) {
      later[at] = e.what();
    }
    static std::barrier<> all(3);
    all.arrive_and_wait();
  });
  for (const auto& text : said) {
    CHECK_THAT(text, Contains("generation") && Contains("step 10 of 4 ranks") &&
                         Contains("rank 1") && Contains("extra: no rank of the old job"));
  }
  CHECK(later == said);
  // The files are still there, for either number.
  job.start(3, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_exactly(ckpt, 10);
    ckpt.finish();
  });
}

TEST_CASE("what only some old ranks had must go to some new rank: it is not dropped in silence") {
  ChangingJob job;
  const auto with_layer = [](int rank, int world, std::uint64_t step, bool has) {
    ms::Dict state = state_at(rank, world, step);
    if (has) state.set("layer1", whole({6}, step, 8));
    return state;
  };
  job.start(4, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    const bool has = rank >= 2;  // the second stage of a pipeline
    ms::Dict state = with_layer(rank, 4, 0, has);
    (void)ckpt.recover(state);
    require(ckpt.stage(with_layer(rank, 4, 10, has), 10).outcome().get() == ms::Outcome::kComplete,
            "the step is not complete");
  });
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, 3, 5);
    std::string said;
    try {
      (void)ckpt.recover(state);
    } catch (const ms::StructureMismatch& e) {
      said = e.what();
    }
    require(said.find("layer1: some ranks of the old job have it, and no rank of this job does") !=
                std::string::npos,
            said);
    require(difference(state, state_at(rank, 3, 5)).empty(), "touched");
    static std::barrier<> all(3);
    all.arrive_and_wait();
  });
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = with_layer(rank, 3, 5, rank == 1);
    require(ckpt.recover(state).step == 10, "another step");
    require(difference(state, with_layer(rank, 3, 10, rank == 1)).empty(), "other values");
    ckpt.finish();
  });
}

TEST_CASE("a death after one state was written and before the step is established loses nothing") {
  ChangingJob job;
  const auto with_mine = [](ms::Dict state, std::atomic<bool>* armed) {
    state.set("mine", std::make_shared<Mine>(7, armed));
    return state;
  };
  job.start(4, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = with_mine(state_at(rank, 4, 0), nullptr);
    (void)ckpt.recover(state);
    auto staging = ckpt.stage(with_mine(state_at(rank, 4, 10), nullptr), 10);
    staging.staged().wait();
    ckpt.finish();
  });
  const auto fabric = std::make_shared<ms::InProcessFabric>();
  std::atomic<bool> armed{true};
  std::atomic<int> assembled{0};
  const auto check = [&](ms::Checkpointer& ckpt, int rank, ms::Dict& state) {
    const auto recovered = ckpt.recover(state);
    require(recovered.step == 10, "step " + std::to_string(recovered.step));
    const auto wrong = difference(state, with_mine(state_at(rank, 3, 10), nullptr));
    require(wrong.empty(), wrong);
    if (recovered.old_world_size == 4) ++assembled;
  };
  std::vector<std::string> errors = run_ranks(all_ranks(3), [&](int rank) {
    std::optional<ms::Checkpointer> ckpt(job.options(rank, 3, *fabric));
    ms::Dict state = with_mine(state_at(rank, 3, 5), rank == 1 ? &armed : nullptr);
    try {
      (void)ckpt->recover(state);
      ms::test::fail_test("nobody died");
    } catch (const ms::RejoinNeeded&) {
      require(rank != 1, "rank 1 is the dead one");
      ckpt->rejoin();
    } catch (const std::runtime_error& e) {
      require(rank == 1 && std::string(e.what()) == "the mine went off", e.what());
      ckpt.reset();
      ckpt.emplace(job.options(rank, 3, *fabric));  // the replacement, with a fresh state
      state = with_mine(state_at(rank, 3, 6), nullptr);
    }
    check(*ckpt, rank, state);
    ckpt->finish();
  });
  all_good(errors);
  CHECK(assembled == 3);
  const auto files = job.files();
  CHECK(std::count(files.begin(), files.end(), "step 10 of 3") == 3);
}

TEST_CASE("an old step below more files than fit a message is gone on from, proven by parts") {
  ChangingJob job;
  first_start(job, 3);
  const auto images = ms::list_images(job.job.disk(), "/disk", InProcessJob::kName);
  REQUIRE(!images.empty());
  // Rank 1 of the old job has persisted more steps than the others.
  for (std::uint64_t step = 11; step < 20; ++step) {
    leave_file(job.job.disk(), 1, image_of_step(1, 3, {images[0].name.id.generation, step}));
  }
  NarrowMessages narrow(2, 2);
  job.change = [&](ms::CheckpointerOptions& o, int) { narrow.attach(o); };
  job.start(2, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_exactly(ckpt, 10);
    stage_exactly(ckpt, 20);
    ckpt.finish();
  });
  CHECK(narrow.asked().size() > 3);
  CHECK_THAT(job.job.log(), !Contains("rank 0 proves"));
}

TEST_CASE("4 ranks that were to become 3, and died in between, come back as 4") {
  ChangingJob job;
  first_start(job, 4);
  const auto fabric = std::make_shared<ms::InProcessFabric>();
  std::barrier<> all(3);
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    auto o = job.options(rank, 3, *fabric);
    o.observer = [&](const ms::PointEvent& event) {
      if (rank == 2 && event.name == "own-writing") throw std::runtime_error("dies here");
    };
    std::optional<ms::Checkpointer> ckpt(std::move(o));
    ms::Dict state = state_at(rank, 3, 5);
    try {
      (void)ckpt->recover(state);
      throw std::logic_error("nobody died");
    } catch (const ms::Error&) {
    }
    all.arrive_and_wait();
  }));
  job.start(4, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    const auto recovered = recover_exactly(ckpt, 10);
    require(recovered.old_world_size == 0, "put together");
    ckpt.finish();
  });
}
