// A job that comes back with another number of ranks, and whose newest step lies in memory alone.
#include <array>
#include <barrier>
#include <system_error>

#include <meshstage/core/os/system_error.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/changing_job.hpp"

namespace ms = meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

enum class OnDisk { kNothing, kOlder, kNewest };

void stage_to_disk(ms::Checkpointer& ckpt, std::uint64_t step) {
  ckpt.persist_now();
  auto staging = ckpt.stage(state_at(ckpt.rank(), ckpt.world_size(), step), step);
  require(staging.persisted().get(ms::Deadline::after(std::chrono::seconds(20))) ==
              ms::DiskOutcome::kEverywhere,
          "step " + std::to_string(step) + " is not on disk");
}

/// `world` ranks end at step 15, which lies in their memory: no rank calls finish().
void leave_step_15(ChangingJob& job, int world, OnDisk on_disk) {
  std::barrier<> all(world);
  job.start(world, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, world, 0);
    (void)ckpt.recover(state);
    if (on_disk == OnDisk::kOlder) stage_to_disk(ckpt, 10);
    if (on_disk == OnDisk::kNewest) {
      stage_to_disk(ckpt, 15);
    } else {
      stage_exactly(ckpt, 15);
    }
    job.borrowed += ckpt.stats().replica_bytes_borrowed;
    all.arrive_and_wait();  // else the first to leave fails step 15 for the others
  });
}

struct DiesHere : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// `world` ranks recover, and one dies of the DiesHere that its options, as `prepare` makes them,
/// throw. Nobody's recover() returns.
void die_recovering(
    ChangingJob& job, int world,
    const std::function<ms::CheckpointerOptions(ms::CheckpointerOptions, int rank)>& prepare) {
  std::barrier<> all(world);
  job.start(world, [&](ms::CheckpointerOptions o, int rank) {
    std::optional<ms::Checkpointer> ckpt(prepare(std::move(o), rank));
    ms::Dict state = state_at(rank, world, 5);
    try {
      (void)ckpt->recover(state);
      throw std::logic_error("nobody died");
    } catch (const ms::Error&) {
    } catch (const DiesHere&) {
    }
    all.arrive_and_wait();
  });
}

/// `world` ranks have step `step` of `before` ranks, go on, and finish.
void go_on(ChangingJob& job, int world, std::uint64_t step, int before) {
  job.start(world, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    const auto recovered = recover_exactly(ckpt, step);
    require(recovered.old_world_size == before, std::to_string(recovered.old_world_size));
    stage_exactly(ckpt, step + 1);
    stage_exactly(ckpt, step + 2);
    ckpt.finish();
  });
  CHECK(job.job.disk().list("/vault").empty());
  const auto files = job.files();
  const std::string newest = "step " + std::to_string(step + 2) + " of " + std::to_string(world);
  CHECK(std::count(files.begin(), files.end(), newest) == world);
}

/// All errors of a start that cannot recover.
std::vector<std::string> refusals(ChangingJob& job, int world) {
  std::vector<std::string> said(static_cast<std::size_t>(world));
  std::barrier<> all(world);
  job.start(world, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, world, 5);
    try {
      (void)ckpt.recover(state);
    } catch (const ms::StructureMismatch& e) {
      said[static_cast<std::size_t>(rank)] = e.what();
    }
    all.arrive_and_wait();
  });
  return said;
}

/// Changes a byte in each own image of that rank.
void rot_own_images(ChangingJob& job, int rank) {
  auto& disk = job.job.disk();
  for (const auto& name : disk.list("/vault")) {
    if (name.find("-r" + std::to_string(rank) + "-i1-own") == std::string::npos) continue;
    const auto file = disk.open("/vault/" + name, ms::OpenMode::kReadWrite);
    const std::uint64_t at = 4096 + 4096 + 100;  // behind the header and the manifest
    std::array<std::byte, 1> byte{};
    (void)file->read_at(byte, at);
    byte[0] ^= std::byte{1};
    ms::write_fully(*file, byte, at);
  }
}

/// The names of the files that ranks publish of step 15, as long as this lives.
struct Watched {
  std::vector<std::unique_ptr<WatchedFileSystem>> systems;
  std::mutex mutex;
  std::vector<std::string> names;

  ms::CheckpointerOptions watch(ms::CheckpointerOptions o,
                                std::function<void(const std::string&)> before = {}) {
    const std::lock_guard lock(mutex);
    systems.push_back(std::make_unique<WatchedFileSystem>(*o.file_system));
    systems.back()->on_rename = [this, before](const std::filesystem::path& to) {
      if (to.parent_path() != "/disk" || to.native().find(".s000000000015.") == std::string::npos)
        return;
      if (before) before(to.filename());
      const std::lock_guard held(mutex);
      names.push_back(to.filename());
    };
    o.file_system = systems.back().get();
    return o;
  }
  /// How many names contain that.
  std::size_t count(const std::string& mark) {
    const std::lock_guard lock(mutex);
    return static_cast<std::size_t>(std::count_if(names.begin(), names.end(), [&](const auto& n) {
      return n.find(mark) != std::string::npos;
    }));
  }
};

}  // namespace

TEST_CASE("another number of ranks goes on from the newest step, in memory or on disk") {
  const auto [before, now] = GENERATE(std::pair(4, 3), std::pair(2, 4), std::pair(3, 1));
  const auto on_disk = GENERATE(OnDisk::kNothing, OnDisk::kOlder, OnDisk::kNewest);
  INFO(before << " ranks, then " << now << ", disk " << static_cast<int>(on_disk));
  ChangingJob job;
  leave_step_15(job, before, on_disk);
  go_on(job, now, 15, before);
  CHECK_THAT(job.job.log(), !Contains("newer than what is gone on from"));
}

TEST_CASE("each old image in memory is written once, by the name that its rank had given it") {
  ChangingJob job;
  leave_step_15(job, 4, OnDisk::kOlder);
  Watched watched;
  SECTION("all own images are whole") {}
  SECTION("one own image is rotten, its replica is not") { rot_own_images(job, 1); }
  SECTION("one vault is gone, and a holder has the image") { job.job.wipe(1); }
  std::barrier<> all(3);
  job.start(3, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(watched.watch(std::move(o)));
    (void)recover_exactly(ckpt, 15);
    all.arrive_and_wait();
    ckpt.finish();
  });
  for (const int owner : {0, 2, 3}) {
    CHECK(watched.count(".r0000" + std::to_string(owner) + "of00004.own") == 1);
  }
  CHECK(watched.count(".r00001of00004.own") + watched.count(".r00001of00004.held-by-00003") == 1);
  CHECK(watched.count("of00004.") == 4);
  CHECK(job.job.disk().list("/vault").empty());
}

TEST_CASE("a replica that borrows is put together out of its lender's file") {
  ChangingJob job;
  job.change = [](ms::CheckpointerOptions& o, int world) {
    if (world != 4) return;
    o.borrowed.lenders = {{}, {}, {1}, {}};  // rank 0 holds rank 2's replicas
    o.borrowed.paths = [](const ms::Value&, int, int) { return std::vector<std::string>{"table"}; };
  };
  leave_step_15(job, 4, OnDisk::kNothing);
  CHECK(job.borrowed > 0);
  job.job.wipe(2);
  Watched watched;
  SECTION("the lender's image is there") {
    std::barrier<> all(3);
    job.start(3, [&](ms::CheckpointerOptions o, int) {
      ms::Checkpointer ckpt(watched.watch(std::move(o)));
      (void)recover_exactly(ckpt, 15);
      all.arrive_and_wait();
      ckpt.finish();
    });
    CHECK(watched.count(".r00002of00004.held-by-00000") == 1);
  }
  SECTION("the lender's image is rotten") {
    rot_own_images(job, 1);
    for (const auto& text : refusals(job, 3)) CHECK_THAT(text, Contains("not every rank's image"));
  }
}

TEST_CASE("what is not in reach in memory is named, and the older step on disk is gone on from") {
  ChangingJob job;
  SECTION("with a step on disk") {
    leave_step_15(job, 4, OnDisk::kOlder);
    job.job.wipe(1);
    job.job.wipe(3);  // the holder of rank 1
    go_on(job, 3, 10, 4);
    CHECK_THAT(job.job.log(), Contains("step 15 of 4 ranks is newer than what is gone on from") &&
                                  Contains("not every rank's image of it is in reach") &&
                                  Contains("start it with 4 ranks"));
  }
  SECTION("with none") {
    leave_step_15(job, 4, OnDisk::kNothing);
    job.job.wipe(1);
    job.job.wipe(3);
    for (const auto& text : refusals(job, 3)) {
      CHECK_THAT(text, Contains("was made by 4 ranks, this job has 3") &&
                           Contains("not every rank's image of it is in reach"));
    }
  }
}

TEST_CASE(
    "without room the older step is gone on from, a warning says why, and 4 ranks lose nothing") {
  ChangingJob job;
  leave_step_15(job, 4, OnDisk::kOlder);
  Watched watched;
  std::barrier<> all(3);
  const bool known_before = GENERATE(true, false);
  job.start(3, [&](ms::CheckpointerOptions o, int) {
    o = watched.watch(std::move(o), [&](const std::string& name) {
      if (name.find(".r00001of00004.") != std::string::npos) {
        throw ms::SystemError("rename", "/disk/" + name, ENOSPC);
      }
    });
    if (known_before) {
      const std::lock_guard lock(watched.mutex);
      for (auto& fs : watched.systems) fs->room = 100;
    }
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_exactly(ckpt, 10);
    all.arrive_and_wait();  // and ends without finish(), as the warning says
  });
  CHECK_THAT(job.job.log(), Contains("step 15 of 4 ranks is newer than what is gone on from") &&
                                Contains("start it with 4 ranks"));
  if (known_before) {
    CHECK_THAT(job.job.log(), Contains("directory has room for 100"));
    CHECK(watched.names.empty());
  } else {
    CHECK_THAT(job.job.log(),
               Contains("the image of rank 1, ") && Contains("is not written to /disk"));
  }
  go_on(job, 4, 15, 0);
}

TEST_CASE(
    "a death while the files are made loses nothing, for the new number and for the old one") {
  ChangingJob job;
  leave_step_15(job, 4, GENERATE(OnDisk::kNothing, OnDisk::kOlder));
  Watched watched;
  die_recovering(job, 3, [&](ms::CheckpointerOptions o, int rank) {
    return watched.watch(std::move(o), [rank](const std::string&) {
      if (rank == 1) throw DiesHere("rank 1");
    });
  });
  CHECK(watched.count("of00004.own") >= 1);
  CHECK(watched.count(".r00001of") == 0);
  SECTION("3 ranks") { go_on(job, 3, 15, 4); }
  SECTION("4 ranks") { go_on(job, 4, 15, 0); }
  SECTION("2 ranks") { go_on(job, 2, 15, 4); }
}

TEST_CASE(
    "a death once the files are made and before a step of 3 ranks is complete loses nothing") {
  ChangingJob job;
  leave_step_15(job, 4, OnDisk::kOlder);
  for (int times = 0; times < 3; ++times) {  // each overwrites what slots it can
    die_recovering(job, 3, [](ms::CheckpointerOptions o, int rank) {
      o.observer = [rank](const ms::PointEvent& event) {
        if (rank == 2 && event.name == "restoring") throw DiesHere("rank 2");
      };
      return o;
    });
  }
  SECTION("3 ranks") { go_on(job, 3, 15, 4); }
  SECTION("4 ranks") { go_on(job, 4, 15, 0); }
}
