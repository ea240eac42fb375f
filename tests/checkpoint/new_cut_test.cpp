// A job that comes back with as many ranks as before, whose states are cut otherwise.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/os/system_error.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/changing_job.hpp"

namespace ms = meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

constexpr int kRanks = 4;

enum class Cut { kRows, kGrid, kTransposedGrid, kColumns, kReplicated };

/// The state of one of four ranks at a step. `rng` and `noise` are each rank's own.
ms::Dict cut_state(Cut cut, int rank, std::uint64_t step) {
  const bool grid = cut == Cut::kGrid || cut == Cut::kTransposedGrid;
  const auto mesh = ms::DeviceMesh::from_shape(grid ? ms::Shape{2, 2} : ms::Shape{kRanks});
  const std::map<Cut, const char*> placements{{Cut::kRows, "S(0)"},
                                              {Cut::kGrid, "S(0),S(1)"},
                                              {Cut::kTransposedGrid, "S(1),S(0)"},
                                              {Cut::kColumns, "S(1)"},
                                              {Cut::kReplicated, "R"}};
  const auto on = [&](const ms::Shape& shape, float salt) {
    return on_mesh(whole(shape, step, salt), mesh, placements.at(cut), rank);
  };
  const ms::Value tied = on({13, 7}, 1);
  return ms::Dict{{"wte", tied},
                  {"head", tied},
                  {"square", on({8, 8}, 2)},
                  {"table", on({60, 500}, 3)},
                  {"bias", whole({5}, step, 4)},
                  {"noise", whole({3}, step, static_cast<float>(10 + rank))},
                  {"rng", static_cast<std::int64_t>(step * 10) + rank},
                  {"step", static_cast<std::int64_t>(step)}};
}

ms::ReshardOptions any_cut() {
  ms::ReshardOptions reshard = any_number();
  reshard.plain = [](const std::string& path) {
    return path == "rng" || path == "noise" ? ms::PlainKind::kPerRank : ms::PlainKind::kSame;
  };
  return reshard;
}

void choose_any_cut(ms::CheckpointerOptions& o, int) { o.any_world = any_cut(); }

class CutJob : public ChangingJob {
 public:
  /// Without files, none can be made.
  explicit CutJob(bool files = true)
      : source(files ? ms::Source::kDisk : ms::Source::kHolderMemory) {
    change = choose_any_cut;
    if (files) return;
    change = [this](ms::CheckpointerOptions& o, int) {
      choose_any_cut(o, kRanks);
      o.directory.clear();
      o.persist_every = 0;
      const std::lock_guard lock(mutex_);
      systems_.push_back(std::make_unique<WatchedFileSystem>(*o.file_system));
      systems_.back()->on_rename = [](const std::filesystem::path& to) {
        if (to.extension() == ".safetensors") throw ms::SystemError("rename", to.native(), EROFS);
      };
      o.file_system = systems_.back().get();
    };
  }
  const ms::Source source;  ///< Of a state that was cut anew.

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<WatchedFileSystem>> systems_;
};

ms::Recovered recover_cut(ms::Checkpointer& ckpt, Cut cut, std::uint64_t step) {
  ms::Dict state = cut_state(cut, ckpt.rank(), 777'777);
  const auto recovered = ckpt.recover(state);
  require(recovered.step == step, "step " + std::to_string(recovered.step));
  const auto wrong = difference(state, cut_state(cut, ckpt.rank(), step));
  require(wrong.empty(), wrong);
  return recovered;
}

void stage_cut(ms::Checkpointer& ckpt, Cut cut, std::uint64_t step) {
  auto staging = ckpt.stage(cut_state(cut, ckpt.rank(), step), step);
  require(staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20))) ==
              ms::Outcome::kComplete,
          "step " + std::to_string(step) + " is not complete");
}

/// Begins with nothing and leaves `step` in memory; no file of it is there.
void first_start(CutJob& job, Cut cut, std::uint64_t step = 10) {
  std::barrier<> all(kRanks);
  job.start(kRanks, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = cut_state(cut, rank, 0);
    (void)ckpt.recover(state);
    stage_cut(ckpt, cut, step);
    all.arrive_and_wait();  // else the first to leave fails the step for the others
  });
}

/// All ranks have `step` in that cut, which was cut anew or not (nothing: either), stage `more`
/// steps, and finish or end.
void go_on(CutJob& job, Cut cut, std::uint64_t step, std::optional<bool> anew, int more = 2,
           bool finish = true) {
  std::barrier<> all(kRanks);
  job.start(kRanks, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    const auto recovered = recover_cut(ckpt, cut, step);
    const bool assembled = recovered.old_world_size != 0;
    require(assembled == anew.value_or(assembled), assembled ? "cut anew" : "not cut anew");
    if (assembled) {
      require(recovered.old_world_size == kRanks, std::to_string(recovered.old_world_size));
      require(recovered.id == ms::ImageId{ckpt.generation(), step}, to_string(recovered.id));
      require(recovered.source == job.source, std::string(to_string(recovered.source)));
    }
    for (int i = 1; i <= more; ++i) stage_cut(ckpt, cut, step + static_cast<std::uint64_t>(i));
    if (finish) return ckpt.finish();
    all.arrive_and_wait();
  });
}

struct DiesHere : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// All ranks recover in that cut, and `victim` dies when it passes `point`. Returns whether it
/// came by. Nobody's recover() returns then, but maybe at `complete`.
bool die_at(CutJob& job, Cut cut, int victim, const std::string& point) {
  std::barrier<> all(kRanks);
  std::atomic<bool> passed{false};
  job.start(kRanks, [&](ms::CheckpointerOptions o, int rank) {
    if (rank == victim) {
      o.observer = [&](const ms::PointEvent& event) {
        if (event.name != point) return;
        passed = true;
        throw DiesHere(point);
      };
    }
    std::optional<ms::Checkpointer> ckpt;
    ms::Dict state = cut_state(cut, rank, 5);
    try {
      ckpt.emplace(std::move(o));
      (void)ckpt->recover(state);
    } catch (const ms::Error&) {
    } catch (const DiesHere&) {
    }
    all.arrive_and_wait();
  });
  return passed;
}

/// What recover() throws at each rank, into the state that `state` makes.
std::vector<std::string> refusals(CutJob& job, const std::function<ms::Dict(int rank)>& state,
                                  const std::string& path) {
  std::vector<std::string> said(kRanks);
  std::barrier<> all(kRanks);
  job.start(kRanks, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict mine = state(rank);
    try {
      (void)ckpt.recover(mine);
    } catch (const ms::StructureMismatch& e) {
      said[static_cast<std::size_t>(rank)] = e.what();
      require(e.path() == path, e.path());
    }
    const auto touched = difference(mine, state(rank));
    require(touched.empty(), "touched: " + touched);
    all.arrive_and_wait();
  });
  return said;
}

}  // namespace

TEST_CASE("4 ranks cut their states anew from start to start: rows, grid, columns, replicated") {
  const bool from_memory = GENERATE(true, false);
  INFO((from_memory ? "from memory" : "from disk"));
  CutJob job;
  first_start(job, Cut::kRows);
  std::uint64_t step = 10;
  for (const Cut cut :
       {Cut::kGrid, Cut::kColumns, Cut::kReplicated, Cut::kTransposedGrid, Cut::kRows}) {
    INFO("cut " << static_cast<int>(cut) << " at step " << step);
    go_on(job, cut, step, true, 2, !from_memory);
    step += 2;
  }
  go_on(job, Cut::kRows, step, false);
  CHECK(job.job.disk().list("/vault").empty());
  const auto files = job.files();
  CHECK(std::count(files.begin(), files.end(), "step " + std::to_string(step + 2) + " of 4") == 4);
}

TEST_CASE("without files another cut is put together from the ranks' slots, and nothing is left") {
  CutJob job(false);
  first_start(job, Cut::kRows);
  std::uint64_t step = 10;
  for (const Cut cut : {Cut::kGrid, Cut::kColumns, Cut::kReplicated, Cut::kTransposedGrid}) {
    INFO("cut " << static_cast<int>(cut) << " at step " << step);
    go_on(job, cut, step, true, 2, false);
    step += 2;
  }
  go_on(job, Cut::kTransposedGrid, step, false);
  CHECK(job.job.disk().list("/vault").empty());
}

TEST_CASE("squares of one local shape whose placements change places are cut anew") {
  CutJob job;
  const auto state = [](Cut cut, int rank, std::uint64_t step) {
    ms::Dict all = cut_state(cut, rank, step);
    return ms::Dict{{"square", *all.find("square")}};
  };
  std::barrier<> all(kRanks);
  job.start(kRanks, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict mine = state(Cut::kGrid, rank, 0);
    (void)ckpt.recover(mine);
    auto staging = ckpt.stage(state(Cut::kGrid, rank, 10), 10);
    require(staging.outcome().get() == ms::Outcome::kComplete, "step 10");
    all.arrive_and_wait();
  });
  job.start(kRanks, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict mine = state(Cut::kTransposedGrid, rank, 5);
    require(ckpt.recover(mine).old_world_size == kRanks, "not cut anew");
    const auto wrong = difference(mine, state(Cut::kTransposedGrid, rank, 10));
    require(wrong.empty(), wrong);
    ckpt.finish();
  });
}

TEST_CASE("a cut that is the same is restored from memory, and no file is written") {
  CutJob job;
  first_start(job, Cut::kGrid);
  go_on(job, Cut::kGrid, 10, false, 1, false);
  CHECK(job.files().empty());
}

TEST_CASE("where the trainer of one rank alone cuts otherwise, all states are put together") {
  CutJob job;
  first_start(job, Cut::kGrid);
  const int other = GENERATE(0, 3);
  job.start(kRanks, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    const Cut cut = rank == other ? Cut::kTransposedGrid : Cut::kGrid;
    require(recover_cut(ckpt, cut, 10).old_world_size == kRanks, "not cut anew");
    ckpt.finish();
  });
}

TEST_CASE("a rank that dies at any point of a new cut's recovery loses nothing") {
  const std::string point =
      GENERATE("claimed", "choice-learned", "ready-to-restore", "restoring", "own-writing",
               "offered", "own-sealed", "replica-sealed", "voted", "complete");
  const int victim = GENERATE(0, 3);
  const Cut next = GENERATE(Cut::kColumns, Cut::kRows);  // the new cut again, or the former one
  const bool files = GENERATE(true, false);
  INFO("rank " << victim << " dies at " << point << (files ? "" : ", without files"));
  CutJob job(files);
  first_start(job, Cut::kRows);
  for (int times = 0; times < 2; ++times) {
    // Where the new step has every rank's image, the second time finds it, and puts nothing
    // together.
    REQUIRE((die_at(job, Cut::kColumns, victim, point) || times > 0));
  }
  job.start(kRanks, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_cut(ckpt, next, 10);
    stage_cut(ckpt, next, 11);
    ckpt.finish();
  });
}

TEST_CASE("a rank that dies while it makes a file for a new cut loses nothing") {
  CutJob job;
  first_start(job, Cut::kRows);
  std::mutex mutex;
  std::vector<std::unique_ptr<WatchedFileSystem>> systems;
  std::atomic<bool> died{false};
  job.change = [&](ms::CheckpointerOptions& o, int) {
    choose_any_cut(o, kRanks);
    if (o.environment->rank != 1) return;
    const std::lock_guard lock(mutex);
    systems.push_back(std::make_unique<WatchedFileSystem>(*o.file_system));
    systems.back()->on_rename = [&](const std::filesystem::path& to) {
      if (to.parent_path() != "/disk") return;
      died = true;
      throw DiesHere("rank 1");
    };
    o.file_system = systems.back().get();
  };
  (void)die_at(job, Cut::kColumns, 1, "never");
  REQUIRE(died);
  job.change = choose_any_cut;
  SECTION("the new cut") { go_on(job, Cut::kColumns, 10, true); }
  SECTION("the former cut") { go_on(job, Cut::kRows, 10, false); }
}

TEST_CASE("a host that is lost between two recoveries of a new cut loses nothing") {
  const std::string point = GENERATE("restoring", "own-writing", "own-sealed");
  const bool files = GENERATE(true, false);
  INFO("rank 1 dies at " << point << (files ? "" : ", without files"));
  CutJob job(files);
  first_start(job, Cut::kRows);
  REQUIRE(die_at(job, Cut::kGrid, 1, point));
  job.job.wipe(1);
  // At own-sealed all images of the new step, and the replica of rank 1's, may be there.
  const auto anew = point == "own-sealed" ? std::nullopt : std::optional<bool>(true);
  go_on(job, Cut::kGrid, 10, anew, 2, false);
  job.job.wipe(2);
  go_on(job, Cut::kRows, 12, true);
}

TEST_CASE("a death after one state was written in the new cut loses nothing") {
  const bool files = GENERATE(true, false);
  INFO((files ? "with files" : "without files"));
  CutJob job(files);
  const auto with_mine = [](ms::Dict state, std::atomic<bool>* armed) {
    state.set("mine", std::make_shared<Mine>(7, armed));
    return state;
  };
  std::barrier<> all(kRanks);
  job.start(kRanks, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = with_mine(cut_state(Cut::kRows, rank, 0), nullptr);
    (void)ckpt.recover(state);
    auto staging = ckpt.stage(with_mine(cut_state(Cut::kRows, rank, 10), nullptr), 10);
    require(staging.outcome().get() == ms::Outcome::kComplete, "step 10");
    all.arrive_and_wait();
  });
  const auto fabric = std::make_shared<ms::InProcessFabric>();
  std::atomic<bool> armed{true};
  all_good(run_ranks(all_ranks(kRanks), [&](int rank) {
    std::optional<ms::Checkpointer> ckpt(job.options(rank, kRanks, *fabric));
    ms::Dict state = with_mine(cut_state(Cut::kGrid, rank, 5), rank == 1 ? &armed : nullptr);
    try {
      (void)ckpt->recover(state);
      ms::test::fail_test("nobody died");
    } catch (const ms::RejoinNeeded&) {
      require(rank != 1, "rank 1 is the dead one");
      ckpt->rejoin();  // some of its tensors are written by now
    } catch (const std::runtime_error& e) {
      require(rank == 1 && std::string(e.what()) == "the mine went off", e.what());
      ckpt.reset();
      ckpt.emplace(job.options(rank, kRanks, *fabric));  // the replacement, with a fresh state
      state = with_mine(cut_state(Cut::kGrid, rank, 6), nullptr);
    }
    const auto recovered = ckpt->recover(state);
    require(recovered.step == 10 && recovered.old_world_size == kRanks, "not cut anew");
    const auto wrong = difference(state, with_mine(cut_state(Cut::kGrid, rank, 10), nullptr));
    require(wrong.empty(), wrong);
    for (const std::uint64_t step : {11, 12}) {  // of these one goes to the slot that was read
      auto staging = ckpt->stage(with_mine(cut_state(Cut::kGrid, rank, step), nullptr), step);
      require(staging.outcome().get() == ms::Outcome::kComplete, "step " + std::to_string(step));
    }
    ckpt->finish();
  }));
}

TEST_CASE("what no cut explains is refused with the first difference, and nothing is touched") {
  CutJob job;
  first_start(job, Cut::kRows);
  const auto wrong_shape = [](int rank) {
    ms::Dict state = cut_state(Cut::kRows, rank, 5);
    if (rank == 2) state.set("bias", whole({6}, 5, 4));
    return state;
  };
  const auto anew = refusals(job, wrong_shape, "bias");
  job.change = [](ms::CheckpointerOptions& o, int) { o.any_world.reset(); };
  const auto plain = refusals(job, wrong_shape, "bias");
  for (std::size_t rank = 0; rank < kRanks; ++rank) {
    CHECK_THAT(plain[rank], Contains("bias: shape: F32[5] in the image, F32[6]"));
    // The text without any_world, but for the generation, and then why no cut explains it.
    const auto text = plain[rank].substr(plain[rank].find("bias: shape"));
    CHECK_THAT(anew[rank], Contains("bias: shape: F32[5] in the image, F32[6]") &&
                               Contains("(staged as rank 2 of 4 ranks, recovered by 4)") &&
                               Contains("nor can it be assembled in another cut"));
    CHECK(anew[rank] == anew[0]);
    CHECK(text == plain[0].substr(plain[0].find("bias: shape")));
  }
  job.change = choose_any_cut;
  SECTION("the former cut goes on") { go_on(job, Cut::kRows, 10, false); }
  SECTION("and so does another") { go_on(job, Cut::kColumns, 10, true); }
}

TEST_CASE("a name that one rank alone lost, or won, is refused beside another cut") {
  CutJob job;
  first_start(job, Cut::kRows);
  const bool lost = GENERATE(true, false);
  const auto said = refusals(
      job,
      [lost](int rank) {
        ms::Dict state = cut_state(Cut::kGrid, rank, 5);
        if (rank == 2 && lost) state.erase("noise");
        if (rank == 2 && !lost) state.set("more", 1);
        return state;
      },
      "wte");
  for (const auto& text : said) {
    CHECK_THAT(text, Contains("nor can it be assembled") &&
                         Contains(lost ? "noise: rank 2 had it" : "more: rank 2 did not have it"));
  }
  go_on(job, Cut::kGrid, 10, true);
}

TEST_CASE("values that differ from rank to rank, and are said to be the same, are named") {
  CutJob job;
  first_start(job, Cut::kRows);
  job.change = [](ms::CheckpointerOptions& o, int) { o.any_world = any_number(); };
  const auto said = refusals(job, [](int rank) { return cut_state(Cut::kGrid, rank, 5); }, "wte");
  for (const auto& text : said) {
    CHECK_THAT(text, Contains("wte") && Contains("nor can it be assembled") && Contains("rng"));
  }
  job.change = choose_any_cut;
  go_on(job, Cut::kGrid, 10, true);
}

TEST_CASE("without room for files another cut is refused, and the former one loses nothing") {
  CutJob job;
  first_start(job, Cut::kRows);
  std::mutex mutex;
  std::vector<std::unique_ptr<WatchedFileSystem>> systems;
  job.change = [&](ms::CheckpointerOptions& o, int) {
    choose_any_cut(o, kRanks);
    if (o.environment->rank != 2) return;
    const std::lock_guard lock(mutex);
    systems.push_back(std::make_unique<WatchedFileSystem>(*o.file_system));
    systems.back()->room = 100;
    o.file_system = systems.back().get();
  };
  const auto said = refusals(job, [](int rank) { return cut_state(Cut::kGrid, rank, 5); }, "wte");
  for (const auto& text : said) {
    CHECK_THAT(text, Contains("it cannot be cut anew") && Contains("rank 2's did not") &&
                         Contains("there is room for 100 bytes"));
  }
  job.change = choose_any_cut;
  SECTION("the former cut") { go_on(job, Cut::kRows, 10, false); }
  SECTION("the other, once there is room") { go_on(job, Cut::kGrid, 10, true); }
}

TEST_CASE("another cut is put together from hosts with disks of their own") {
  CutJob job;
  for (const char* directory : {"/disk0", "/disk1"}) job.job.disk().make_directories(directory);
  job.change = [](ms::CheckpointerOptions& o, int) {
    choose_any_cut(o, kRanks);
    o.directory = "/disk" + std::to_string(o.environment->rank / 2);
  };
  first_start(job, Cut::kRows);
  go_on(job, Cut::kColumns, 10, true, 2, false);
  go_on(job, Cut::kGrid, 12, true);
  go_on(job, Cut::kReplicated, 14, true);
}
