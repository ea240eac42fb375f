// A job that comes back with its ranks on other hosts, which have hardly more memory than the job
// needs.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/async/mutex.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/failing_pace.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"
#include "tests/support/seated_job.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::FailingPace;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::Seats;
using ms::test::stage_all;
using ms::test::state_of;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 30U;

/// Each host has so much memory, and its own vaults.
class ScarceHosts {
 public:
  ScarceHosts(int world, std::uint64_t memory) : job_(world), memory_(memory) {}

  ms::CheckpointerOptions options(int rank, const Seats& seats) {
    const int host = seats[static_cast<std::size_t>(rank)];
    auto o = job_.options(rank);
    o.environment->local_world_size =
        static_cast<int>(std::count(seats.begin(), seats.end(), host));
    o.vault_directory = "/vault";
    o.directory.clear();
    o.persist_every = 0;
    const ms::MutexLock lock(mutex_);
    auto& disk = hosts_[host];
    if (!disk) {
      disk = std::make_unique<ms::MemoryFileSystem>(
          ms::MemoryFileSystemOptions{.capacity = memory_, .max_file_bytes = 1U << 20U});
    }
    processes_.push_back(disk->as_process(next_process_++));
    o.file_system = processes_.back().get();
    return o;
  }
  /// One life of the job: it recovers that step and stages those. `finishes`: and ends for good.
  void live(const Seats& seats, std::uint64_t finds, const std::vector<std::uint64_t>& stages,
            bool finishes = false) {
    all_good(run_ranks(all_ranks(job_.world_size()), [&](int rank) {
      ms::Checkpointer ckpt(options(rank, seats));
      (void)recover_to(ckpt, finds);
      stage_all(ckpt, stages);
      if (finishes) ckpt.finish();
    }));
  }
  /// Of host 0.
  [[nodiscard]] std::uint64_t used() {
    const ms::MutexLock lock(mutex_);
    return hosts_.at(0)->used();
  }

 private:
  ms::test::InProcessJob job_;
  std::uint64_t memory_;
  ms::Mutex mutex_;
  std::map<int, std::unique_ptr<ms::MemoryFileSystem>> hosts_ MESHSTAGE_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<ms::MemoryFileSystem>> processes_ MESHSTAGE_GUARDED_BY(mutex_);
  std::int64_t next_process_ MESHSTAGE_GUARDED_BY(mutex_) = 1000;
};

/// Bytes that a host's vaults have when the job has staged three steps.
std::uint64_t bytes_of_three_steps(const Seats& seats) {
  ScarceHosts job(static_cast<int>(seats.size()), kUnlimited);
  job.live(seats, 0, {1, 2, 3});
  return job.used();
}

}  // namespace

TEST_CASE("ranks that change places need no room: what each is to have lies where it sits now") {
  ScarceHosts job(2, bytes_of_three_steps({0, 1}) + kPage);  // the other rank's control page
  job.live({0, 1}, 0, {1, 2, 3});
  job.live({1, 0}, 3, {4, 5});
  job.live({0, 1}, 5, {6}, true);
  CHECK(job.used() == 0);
}

TEST_CASE("ranks of one host that move to another find there what they need, each its own") {
  const Seats before{0, 0, 1, 1};
  const std::uint64_t bytes = bytes_of_three_steps(before);
  // One of the two may stage while the other has not removed yet what is superseded: three slots.
  ScarceHosts job(4, bytes + 2 * kPage + 3 * (bytes / 8));
  job.live(before, 0, {1, 2, 3});
  job.live({1, 1, 0, 0}, 3, {4}, true);
  CHECK(job.used() == 0);
}

// Rank r's image lies on hosts r and r + 1. It moves to host r + 1, where its ward's never was.

TEST_CASE(
    "without room on the new hosts the error says what holds it, and the old seats still work") {
  ScarceHosts job(3, bytes_of_three_steps({0, 1, 2}) + 6 * kPage);
  job.live({0, 1, 2}, 0, {1, 2, 3});
  const auto errors = run_ranks(all_ranks(3), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank, {1, 2, 0}));
    (void)recover_to(ckpt, 3);
  });
  const auto says = [](const std::string& error) {
    return error.find("out of memory: no room for slot") != std::string::npos &&
           error.find("with each rank on its host of before") != std::string::npos;
  };
  // A rank may learn first that another one left.
  CHECK(std::any_of(errors.begin(), errors.end(), says));
  CHECK(std::count(errors.begin(), errors.end(), "") == 0);
  job.live({0, 1, 2}, 3, {4, 5}, true);
}

TEST_CASE("without room, slots go that have neither the chosen step nor its base") {
  const Seats before{0, 1, 2};
  ScarceHosts job(3, bytes_of_three_steps(before) + 6 * kPage);
  job.live(before, 0, {1, 2, 3});
  // Step 4 overwrites step 2, the base, in each own slot, and is not whole at rank 2.
  std::barrier everyone(3);
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    auto options = job.options(rank, before);
    FailingPace pace;
    options.pace = &pace;
    ms::Checkpointer ckpt(options);
    (void)recover_to(ckpt, 3);
    pace.fails = rank == 2;
    if (rank == 2) everyone.arrive_and_wait();
    auto staging = ckpt.stage(state_of(rank, 4), 4);
    if (rank != 2) {
      staging.staged().wait();
      everyone.arrive_and_wait();
    }
    const auto outcome = staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20)));
    everyone.arrive_and_wait();  // who left before the others know of it would be their loss
    ms::test::require(outcome == ms::Outcome::kFailed, "step 4 is complete");
  }));
  job.live({1, 2, 0}, 3, {4, 5}, true);
}
