// A slow disk is no dead one: a rank whose images come, however slowly, is waited for in a recovery
// as long as it takes. One of which nothing comes any more is named, with the file.
#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <string>
#include <thread>

#include <meshstage/core/generation/number.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/changing_job.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/watched_file_system.hpp"

namespace {

namespace ms = meshstage;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::ChangingJob;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::WatchedFileSystem;
using OnMap = std::function<void(const std::filesystem::path&)>;

constexpr auto kDeadline = 1500ms;
constexpr auto kForming = 2000ms;
constexpr auto kLongForming = 60s;  // where a disk hangs, ranks meet again however slow they are
constexpr auto kFile = 500ms;       // a slow disk needs it for each file
constexpr std::uint64_t kSteps = 6;

void shorten(ms::CheckpointerOptions& o, std::chrono::milliseconds forming) {
  o.deadline = kDeadline;
  o.forming_deadline = forming;
}

ms::CheckpointerOptions options(InProcessJob& job, int rank) {
  auto o = job.options(rank);
  o.persist_every = 1;
  o.keep = kSteps;
  return o;
}

/// Leaves the images of two ranks of every step on disk, and nothing in memory.
void leave_files(InProcessJob& job) {
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(options(job, rank));
    (void)recover_to(ckpt, 0);
    for (std::uint64_t step = 1; step <= kSteps; ++step) {
      auto staging = ckpt.stage(ms::test::state_of(rank, step), step);
      require(staging.outcome().get() == ms::Outcome::kComplete, "a step is not complete");
      require(staging.persisted().get() == ms::DiskOutcome::kEverywhere, "a step is not on disk");
    }
    ckpt.finish();
  }));
}

bool is_image(const std::filesystem::path& path) { return path.extension() == ".safetensors"; }

/// A disk that hangs until so many ranks have found that out.
class HangingDisk {
 public:
  explicit HangingDisk(int finders) : finders_(finders) {}
  void hang() {
    if (!hung_.exchange(true)) since_ = Clock::now();
    back_.wait();
  }
  /// Runs a recovery, which must end because rank 1 has read nothing of an image.
  void require_named(int rank, const std::function<void()>& recover) {
    std::string text;
    bool names = false;
    try {
      recover();
    } catch (const ms::PeerSilent& e) {
      text = e.what();
      names = e.rank() == 1 || rank == 1;
    }
    const auto took = Clock::now() - since_.load();
    if (++found_ == finders_) promise_.set_value();
    require(names, "another rank is named: " + text);
    require(text.find("rank 1 has read nothing of /disk/") != std::string::npos &&
                text.find(".safetensors for 1500 ms") != std::string::npos &&
                text.find("its disk hangs") != std::string::npos,
            "it says: " + text);
    require(took >= kDeadline / 2 && took < kLongForming / 2, "it took too long, or was too short");
  }

 private:
  const int finders_;
  std::promise<void> promise_;
  const std::shared_future<void> back_ = promise_.get_future().share();
  std::atomic<bool> hung_{false};
  std::atomic<Clock::time_point> since_{Clock::time_point::max()};
  std::atomic<int> found_{0};
};

/// All ranks start with their images on disk alone; rank 1's disk does that for each mapping.
void start(InProcessJob& job, const OnMap& disk_of_1,
           const std::function<void(ms::Checkpointer&, int rank)>& body,
           std::chrono::milliseconds forming = kForming) {
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = options(job, rank);
    shorten(o, forming);
    WatchedFileSystem disk(*o.file_system);
    if (rank == 1) {
      disk.on_map = [&](const std::filesystem::path& path) {
        if (is_image(path)) disk_of_1(path);
      };
    }
    o.file_system = &disk;
    ms::Checkpointer ckpt(std::move(o));
    body(ckpt, rank);
    ckpt.finish();
  }));
}

}  // namespace

TEST_CASE("recover() reads files for longer than the forming deadline, as long as they come") {
  InProcessJob job(2);
  leave_files(job);
  const auto begin = Clock::now();
  std::atomic<int> generations{0};
  // Its own images and its replicas of the other rank's: 12 files.
  start(
      job, [](const auto&) { std::this_thread::sleep_for(kFile); },
      [&](ms::Checkpointer& ckpt, int) {
        (void)recover_to(ckpt, kSteps);
        generations = static_cast<int>(ms::generation_in_run(ckpt.generation()));
      });
  CHECK(Clock::now() - begin > 2 * kForming);
  CHECK(generations == 2);
  CHECK_THAT(job.log(), contains_text(" bytes read of /disk/in-process.g"));
}

TEST_CASE("a rank whose disk hangs in a recovery is named, and comes back with its disk") {
  const bool proven = GENERATE(false, true);
  INFO((proven ? "while the image is read again for its slot" : "while the image is proven"));
  InProcessJob job(2);
  leave_files(job);
  HangingDisk disk(2);
  std::map<std::filesystem::path, int> mapped;  // of rank 1's thread that verifies
  start(
      job,
      [&](const std::filesystem::path& path) {
        if (++mapped[path] == (proven ? 2 : 1)) disk.hang();
      },
      [&](ms::Checkpointer& ckpt, int rank) {
        disk.require_named(rank, [&] { (void)recover_to(ckpt, kSteps); });
        (void)recover_to(ckpt.rejoin(), kSteps);
      },
      kLongForming);
}

namespace {

/// A job of 4 ranks has left files; 3 ranks go on from them. `disk_of_1` is called, for each image
/// that rank 1 maps, with whether its trainer's thread does.
void start_as_three(ChangingJob& job, const std::function<void(bool by_trainer)>& disk_of_1,
                    const std::function<void(ms::Checkpointer&, int rank)>& body,
                    std::chrono::milliseconds forming = kForming) {
  job.start(4, [](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = ms::test::state_at(rank, 4, 0);
    (void)ckpt.recover(state);
    ckpt.persist_now();
    ms::test::stage_exactly(ckpt, 10);
    ckpt.finish();
  });
  job.change = [forming](ms::CheckpointerOptions& o, int) { shorten(o, forming); };
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    WatchedFileSystem disk(*o.file_system);
    const auto trainer = std::this_thread::get_id();
    if (rank == 1) {
      disk.on_map = [&](const std::filesystem::path& path) {
        if (is_image(path)) disk_of_1(std::this_thread::get_id() == trainer);
      };
    }
    o.file_system = &disk;
    ms::Checkpointer ckpt(std::move(o));
    body(ckpt, rank);
    ckpt.finish();
  });
}

}  // namespace

TEST_CASE("another number of ranks reads its files for longer than the forming deadline") {
  ChangingJob job;
  start_as_three(
      job, [](bool by_trainer) { std::this_thread::sleep_for(by_trainer ? 3 * kFile / 2 : kFile); },
      [](ms::Checkpointer& ckpt, int) {
        (void)ms::test::recover_exactly(ckpt, 10);
        require(ms::generation_in_run(ckpt.generation()) == 2, "a rank was lost");
      });
}

TEST_CASE("a rank whose disk hangs while it reads another number of ranks' files is named") {
  ChangingJob job;
  HangingDisk disk(2);  // rank 1's own trainer finds it when the disk is back
  start_as_three(
      job,
      [&](bool by_trainer) {
        if (by_trainer) disk.hang();
      },
      [&](ms::Checkpointer& ckpt, int rank) {
        disk.require_named(rank, [&] { (void)ms::test::recover_exactly(ckpt, 10); });
        (void)ms::test::recover_exactly(ckpt.rejoin(), 10);
      },
      kLongForming);
}
