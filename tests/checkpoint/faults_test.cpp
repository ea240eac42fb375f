// What a trainer may do wrong or meet, and what must come of it: a clear error, nothing touched,
// and the job goes on once the cause is gone.
#include <barrier>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/outcomes.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::difference;
using ms::test::InProcessJob;
using ms::test::recover_fresh;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::stage_one;
using ms::test::state_of;

/// What a call throws, "" if nothing.
template <class E, class Call>
std::string thrown(Call&& call) {
  try {
    call();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("what is called at the wrong time is refused, and nothing comes of it") {
  InProcessJob job(1);
  ms::Checkpointer ckpt(job.options(0));
  const auto refused = [](auto&& call) { return thrown<ms::InvalidState>(call); };
  CHECK_THAT(refused([&] { (void)ckpt.stage(state_of(0, 1), 1); }),
             contains_text("before recover()"));
  (void)recover_to(ckpt, 0);
  ms::Dict state = state_of(0, 0);
  CHECK_THAT(refused([&] { (void)ckpt.recover(state); }), contains_text("rejoin() before"));
  stage_all(ckpt, {5, 7});
  for (const std::uint64_t step : {7, 6, 0}) {  // backwards, and the same again
    INFO(step);
    CHECK_THAT(refused([&] { (void)ckpt.stage(state_of(0, step), step); }),
               contains_text("stage() refused"));
  }
  stage_all(ckpt, {8});  // it goes on
  ckpt.finish();
  ckpt.finish();  // once more does nothing
  CHECK_THAT(refused([&] { (void)ckpt.stage(state_of(0, 9), 9); }),
             contains_text("after finish()"));
  CHECK_THAT(refused([&] { (void)ckpt.recover(state); }), contains_text("after finish()"));
  CHECK(job.disk().list("/vault").empty());
}

TEST_CASE("a structure that changes from step to step is staged and recovered as it then is") {
  InProcessJob job(2);
  const auto grown = [](int rank) {
    ms::Dict state = state_of(rank, 3, 20'000);
    state.set("extra", ms::Tensor::full<float>({300}, static_cast<float>(rank)));
    return state;
  };
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
    for (const std::uint64_t step : {3, 4}) {  // larger, then small again
      auto staging = ckpt.stage(step == 3 ? grown(rank) : state_of(rank, 4, 1000), step);
      ms::test::require_complete(staging);
    }
    auto staging = ckpt.stage(grown(rank), 5);
    ms::test::require_complete(staging);
  }));
  job.wipe(1);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = grown(rank);
    state.at("extra").as<ms::Tensor>().data<float>()[7] = -1;
    ms::test::require(ckpt.recover(state).step == 5, "another step");
    const auto different = difference(state, grown(rank));
    ms::test::require(different.empty(), different);
    ckpt.finish();
  }));
}

TEST_CASE("a stage() while the last one is unfinished waits for it, or is skipped and counted") {
  const auto when = GENERATE(ms::WhenBusy::kWait, ms::WhenBusy::kSkip);
  InProcessJob job(2);
  std::promise<void> gate;  // rank 1 seals nothing until it opens
  auto open = gate.get_future().share();
  std::barrier everyone(2);
  std::vector<ms::Stats> stats(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.when_busy = when;
    if (rank == 1) {
      o.observer = [open](const ms::PointEvent& event) {
        if (event.point == ms::Point::kOwnSealed && event.id.step == 1) open.wait();
      };
    }
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    auto first = ckpt.stage(state_of(rank, 1), 1);
    everyone.arrive_and_wait();
    // Rank 0 is sure to find step 1 unfinished.
    if (rank == 0 && when == ms::WhenBusy::kSkip) {
      auto second = ckpt.stage(state_of(rank, 2), 2);
      ms::test::require(second.outcome().get() == ms::Outcome::kSkipped, "not skipped");
      second.staged().wait();
      gate.set_value();
    }
    if (rank == 1 && when == ms::WhenBusy::kWait) {
      gate.set_value();
    }
    ms::test::require(first.outcome().get() == ms::Outcome::kComplete, "step 1 failed");
    everyone.arrive_and_wait();
    if (when == ms::WhenBusy::kSkip) {
      if (rank == 1) {  // what one rank skips fails for all
        ms::test::require(stage_one(ckpt, 2) == ms::Outcome::kFailed, "step 2 is complete");
      }
    }
    everyone.arrive_and_wait();
    stage_all(ckpt, {3});
    stats[static_cast<std::size_t>(rank)] = ckpt.stats();
    ckpt.finish();
  }));
  CHECK(stats[0].skipped == (when == ms::WhenBusy::kSkip ? 1 : 0));
  CHECK(stats[1].skipped == 0);
  CHECK(stats[0].complete == 3);  // steps 0, 1 and 3
}

TEST_CASE("a Checkpointer that goes with work in flight leaves what was complete") {
  InProcessJob job(2);
  std::barrier everyone(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
    everyone.arrive_and_wait();
    (void)ckpt.stage(state_of(rank, 3), 3);  // dropped, and the Checkpointer with it
    everyone.arrive_and_wait();
  }));
  std::vector<std::uint64_t> steps(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    steps[static_cast<std::size_t>(rank)] = recover_fresh(ckpt).step;
    ckpt.finish();
  }));
  CHECK(steps[0] == steps[1]);
  CHECK(steps[0] >= 2);
}

TEST_CASE(
    "two jobs with one id: the newer one has the vaults, the older is fenced and harms nothing") {
  InProcessJob older(2);
  ms::InProcessFabric fabric;
  const auto store = std::make_shared<ms::InMemoryStore>();
  std::barrier everyone(4);
  std::vector<std::string> said(2);
  all_good(run_ranks({0, 1, 2, 3}, [&](int who) {
    const int rank = who % 2;
    auto o = older.options(rank);
    if (who >= 2) {  // started elsewhere: the same directories, but another Store
      o.transport = fabric.attach(rank);
      o.store_object = store;
    }
    std::optional<ms::Checkpointer> ckpt;
    if (who < 2) {
      ckpt.emplace(o);
      (void)recover_to(*ckpt, 0);
      stage_all(*ckpt, {1, 2});
    }
    everyone.arrive_and_wait();
    if (who >= 2) {
      ckpt.emplace(o);
      (void)recover_fresh(*ckpt);
      stage_all(*ckpt, {11, 12});
    }
    everyone.arrive_and_wait();
    if (who < 2) {
      said[static_cast<std::size_t>(rank)] = thrown<ms::Error>([&] {
        // The first may only be told that the other could not: that step failed.
        for (std::uint64_t step = 3; step < 6; ++step) {
          auto staging = ckpt->stage(state_of(rank, step), step);
          staging.staged().get();
          ms::test::require(staging.outcome().get() != ms::Outcome::kComplete, "complete");
        }
      });
    }
    everyone.arrive_and_wait();
    if (who >= 2) stage_all(*ckpt, {13});
    everyone.arrive_and_wait();
  }));
  for (const auto& text : said)
    CHECK_THAT(text, contains_text("fenced: incarnation 1 is superseded by 2"));
  all_good(run_ranks(all_ranks(2), [&](int rank) {  // the newer one, started again
    auto o = older.options(rank);
    o.transport = fabric.attach(rank);
    o.store_object = store;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 13);
    ckpt.finish();
  }));
  CHECK(older.disk().list("/vault").empty());
}

TEST_CASE("a job id used again for another model names the first difference and touches nothing") {
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
  }));
  std::vector<std::string> said(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict other = rank == 0 ? state_of(rank, 9) : state_of(rank, 9, 6000);
    said[static_cast<std::size_t>(rank)] =
        thrown<ms::StructureMismatch>([&] { (void)ckpt.recover(other); });
    const auto touched = difference(other, rank == 0 ? state_of(rank, 9) : state_of(rank, 9, 6000));
    ms::test::require(touched.empty(), "touched: " + touched);
    (void)recover_to(ckpt.rejoin(), 2);  // with the right one
    ckpt.finish();
  }));
  for (const auto& text : said) {
    CHECK_THAT(text, contains_text("model.weight"));
    CHECK_THAT(text, contains_text("100, 50] in the image"));
    CHECK_THAT(text, contains_text("120, 50] in the program's state dict"));
    CHECK_THAT(text, contains_text("staged as rank 1 of 2 ranks, recovered by 2"));
  }
}

TEST_CASE("a state that cannot be written is refused by all ranks before any is touched") {
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
  }));
  std::vector<std::string> said(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = state_of(rank, 9);
    if (rank == 1) {
      const auto bias = state.at("model").at("bias").as<ms::Tensor>();
      auto model = state.at("model").as<ms::Dict>();
      model.set("bias",
                ms::Tensor::on_storage(
                    ms::Storage::wrap(bias.storage().data(), bias.storage().nbytes(),
                                      std::make_shared<ms::Tensor>(bias), {.read_only = true}),
                    bias.dtype(), bias.shape()));
    }
    said[static_cast<std::size_t>(rank)] =
        thrown<ms::InvalidState>([&] { (void)ckpt.recover(state); });
    const auto touched = difference(state, state_of(rank, 9));
    ms::test::require(touched.empty(), "touched: " + touched);
    (void)recover_to(ckpt.rejoin(), 1);
    ckpt.finish();
  }));
  for (const auto& text : said) {
    CHECK_THAT(text, contains_text("model.bias is in read-only memory"));
  }
}

TEST_CASE("a job that comes back with another world size is told both sizes") {
  InProcessJob two(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(two.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
  }));
  ms::InProcessFabric fabric;
  auto store = std::make_shared<ms::InMemoryStore>();
  std::vector<std::string> said(3);
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    auto o = two.options(rank);
    o.environment->world_size = o.environment->local_world_size = 3;
    o.transport = fabric.attach(rank);
    o.store_object = store;
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_of(rank, 9);
    said[static_cast<std::size_t>(rank)] = thrown<ms::Error>([&] { (void)ckpt.recover(state); });
    ms::test::require(difference(state, state_of(rank, 9)).empty(),
                      "the trainer's state was touched");
    static std::barrier<> all(3);
    all.arrive_and_wait();
  }));
  for (const auto& text : said) {
    CHECK_THAT(text, contains_text("2"));
    CHECK_THAT(text, contains_text("3"));
    CHECK_THAT(text, contains_text("was made by 2 ranks, this job has 3"));
    CHECK_THAT(text, contains_text("CheckpointerOptions::any_world"));
  }
}

TEST_CASE(
    "a state for which there is no room is refused with what is needed, and a smaller works") {
  ms::MemoryFileSystem disk({.capacity = 200'000, .max_file_bytes = 1U << 20U, .in_memory = true});
  disk.make_directories("/vault");
  disk.make_directories("/disk");
  ms::InProcessFabric fabric;
  auto o = InProcessJob(1).options(0);
  o.transport = fabric.attach(0);
  o.store_object = std::make_shared<ms::InMemoryStore>();
  o.file_system = &disk;
  o.log = [](const ms::LogLine&) {};
  o.persist_every = 0;
  ms::Checkpointer ckpt(std::move(o));
  (void)recover_to(ckpt, 0);
  for (const std::uint64_t step : {1, 2}) {  // and again, if it is tried again
    INFO(step);
    const std::string said =
        thrown<ms::OutOfMemory>([&] { (void)ckpt.stage(state_of(0, step, 100'000), step); });
    for (const char* part : {"needed", "available", "limit"}) CHECK_THAT(said, contains_text(part));
    CHECK(disk.used() < 100'000);  // refused before anything was allocated
  }
  stage_all(ckpt, {3, 4});
  ckpt.finish();
}

TEST_CASE(
    "slots for all ranks of the host are checked against memory, its control group and the disk") {
  // needed: four images of each of the host's four ranks.
  struct Case {
    const char *meminfo_kb, *group_limit;
    std::uint64_t disk;
    const char *limit, *remedy;
  };
  const auto c = GENERATE(
      Case{"900", "max", 1U << 30U, "MemAvailable of /proc/meminfo", "fewer ranks on this one"},
      Case{"9000000", "700000", 1U << 30U, "the memory limit of control group /sys/fs/cgroup/job",
           "raise it (docker run --memory=...)"},
      Case{"9000000", "max", 600'000, "the file system of /vault",
           "name a vault directory with more room"});
  ms::MemoryFileSystem disk({.capacity = c.disk, .max_file_bytes = 1U << 20U, .in_memory = true});
  for (const char* directory : {"/vault", "/disk", "/proc/self", "/sys/fs/cgroup/job"}) {
    disk.make_directories(directory);
  }
  const auto put = [&](const char* path, const std::string& text) {
    const auto file = disk.open(path, ms::OpenMode::kCreateExclusive);
    ms::write_fully(*file, std::as_bytes(std::span(text)), 0);
  };
  put("/proc/meminfo",
      "MemTotal: 9000000 kB\nMemAvailable: " + std::string(c.meminfo_kb) + " kB\n");
  put("/proc/self/cgroup", "0::/job\n");
  put("/proc/self/mountinfo", "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
  put("/sys/fs/cgroup/job/memory.max", std::string(c.group_limit) + "\n");
  put("/sys/fs/cgroup/job/memory.current", "0\n");
  put("/sys/fs/cgroup/job/memory.stat", "inactive_file 0\n");
  ms::InProcessFabric fabric;
  auto o = InProcessJob(1).options(0);
  o.environment->local_world_size = 4;
  o.transport = fabric.attach(0);
  o.store_object = std::make_shared<ms::InMemoryStore>();
  o.file_system = &disk;
  o.log = [](const ms::LogLine&) {};
  o.persist_every = 0;
  ms::Checkpointer ckpt(std::move(o));
  (void)recover_to(ckpt, 0);
  const auto before = disk.used();
  const std::string said =
      thrown<ms::OutOfMemory>([&] { (void)ckpt.stage(state_of(0, 1, 20'000), 1); });
  for (const char* part : {"needed in /vault by 4 ranks on this host", "bytes each",
                           "available; "
                           "the limit is",
                           c.limit, c.remedy}) {
    CHECK_THAT(said, contains_text(part));
  }
  CHECK(disk.used() == before);  // nothing was allocated for it
  stage_all(ckpt, {2});          // a smaller one has room
  ckpt.finish();
}

TEST_CASE("who waits for ranks tells which, and for how long") {
  InProcessJob job(3);
  auto options = job.options(1);
  options.forming_deadline = std::chrono::seconds(6);
  CHECK_THROWS_AS(ms::Checkpointer(std::move(options)), ms::Timeout);
  CHECK_THAT(job.log(), contains_text("rank 1: waiting for ranks 0, 2 of 3; "));
  CHECK_THAT(job.log(), contains_text(" of 6 s"));
}

TEST_CASE("a directory may be relative or below HOME, and is named where it cannot be") {
  InProcessJob job(1);
  auto options = job.options(0);
  options.directory = "ckpt";
  options.persist_every = 1;
  const std::string below = (std::filesystem::current_path() / "ckpt").string();
  {
    ms::Checkpointer ckpt(options);
    (void)recover_to(ckpt, 0);
    ckpt.finish();
  }
  CHECK(job.disk().list(below).size() == 1);
  const char* const home = std::getenv("HOME");
  const std::string before = home == nullptr ? "" : home;
  ::setenv("HOME", "/users/ada", 1);
  options = job.options(0);
  options.directory = "~/ckpt";
  options.persist_every = 1;
  {
    ms::Checkpointer ckpt(options);
    (void)recover_to(ckpt, 0);
    ckpt.finish();
  }
  home == nullptr ? ::unsetenv("HOME") : ::setenv("HOME", before.c_str(), 1);
  CHECK(job.disk().list("/users/ada/ckpt").size() == 1);
  options = job.options(0);
  options.directory = "~nobody/ckpt";
  CHECK_THAT(thrown<ms::InvalidArgument>([&] { const ms::Checkpointer ckpt(options); }),
             contains_text("directory \"~nobody/ckpt\""));
}

TEST_CASE("owner and holder lost together: from disk, or an error that names the ranks") {
  const bool files = GENERATE(true, false);
  InProcessJob job(4);
  all_good(run_ranks(all_ranks(4), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = files ? 1 : 0;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
    static std::barrier<> all(4);
    // Persisting goes on behind the steps: finish() would wait for it, and remove the vaults.
    for (;;) {
      const auto stats = ckpt.stats();
      if (!files || stats.persisted + stats.persist_failed == 3) break;  // 0, 1, 2
      std::this_thread::yield();
    }
    all.arrive_and_wait();
  }));
  job.wipe(0);
  job.wipe(2);
  std::vector<std::string> said(4);
  std::vector<std::uint64_t> steps(4, 99);
  all_good(run_ranks(all_ranks(4), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = state_of(rank, 9);
    const auto r = static_cast<std::size_t>(rank);
    try {
      steps[r] = ckpt.recover(state).step;
    } catch (const ms::Unrecoverable& e) {
      said[r] = e.what();
    }
    const auto different = difference(state, state_of(rank, files ? 2 : 9));
    ms::test::require(different.empty(), different);
    static std::barrier<> all(4);
    all.arrive_and_wait();
  }));
  for (const auto step : steps) CHECK(step == (files ? 2U : 99U));
  for (const auto& text : said) {
    if (files) CHECK(text == "");
    if (!files) CHECK_THAT(text, contains_text("0") && contains_text("2"));
  }
}
