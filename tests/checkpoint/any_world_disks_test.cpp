// A job that comes back with another number of ranks on hosts whose disks only they reach.
#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/files/publish.hpp>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tests/replicate/part_images.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/changing_job.hpp"
#include "tests/support/disk_contents.hpp"
#include "tests/support/meddling_transport.hpp"
#include "tests/support/require.hpp"
#include "tests/support/watched_file_system.hpp"

namespace ms = meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

/// A ChangingJob on hosts with a disk and vaults of their own. Each start seats its ranks anew.
struct HostsJob : ChangingJob {
  explicit HostsJob(int hosts) : hosts_(hosts) {
    for (int host = 0; host < hosts; ++host) {
      for (const char* what : {"/disk", "/vault"}) {
        job.disk().make_directories(what + std::to_string(host));
      }
    }
    change = [this](ms::CheckpointerOptions& o, int world) {
      o.environment->local_world_size = std::max(1, world / 2);
      o.environment->local_rank = o.environment->rank % o.environment->local_world_size;
      const auto host = std::to_string(seat(o.environment->rank));
      o.directory = "/disk" + host;
      o.vault_directory = "/vault" + host;
      o.deadline = std::chrono::seconds(5);
      adjust(o);
    };
  }
  std::vector<std::string> disk_of(int host) {
    const auto directory = "/disk" + std::to_string(host);
    std::vector<std::string> names;
    for (const auto& image : ms::list_images(job.disk(), directory, InProcessJob::kName)) {
      names.push_back(image.path.filename());
    }
    return names;
  }
  bool no_vaults() {
    for (int host = 0; host < hosts_; ++host) {
      if (!job.disk().list(vaults_of(host)).empty()) return false;
    }
    return true;
  }
  void lose_memory() {
    for (int host = 0; host < hosts_; ++host) {
      for (const auto& name : job.disk().list(vaults_of(host))) {
        job.disk().unlink(vaults_of(host) + "/" + name);
      }
    }
  }
  static std::string vaults_of(int host) { return "/vault" + std::to_string(host); }

  std::function<int(int rank)> seat = [](int rank) { return rank % 2; };
  std::function<void(ms::CheckpointerOptions&)> adjust = [](ms::CheckpointerOptions&) {};

 private:
  int hosts_;
};

/// `world` ranks begin anew, or go on from step `from`, stage these steps and end without finish().
/// `to_disk`: each step is on every rank's disk.
void leave_steps(HostsJob& job, int world, const std::vector<std::uint64_t>& steps, bool to_disk,
                 std::uint64_t from = 0) {
  std::barrier<> all(world);
  job.start(world, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    begin_or_go_on(ckpt, from);
    for (const auto step : steps) {
      if (to_disk) ckpt.persist_now();
      auto staging = ckpt.stage(state_at(rank, world, step), step);
      const auto by = ms::Deadline::after(std::chrono::seconds(20));
      require(staging.outcome().get(by) == ms::Outcome::kComplete, "not complete");
      require(!to_disk || staging.persisted().get(by) == ms::DiskOutcome::kEverywhere, "no file");
    }
    all.arrive_and_wait();
  });
}

/// `world` ranks have step `step` of `before` ranks, and have step + 10 on disk in the end.
void go_on(HostsJob& job, int world, std::uint64_t step, int before) {
  job.start(world, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    const auto recovered = recover_exactly(ckpt, step);
    require(recovered.old_world_size == before, std::to_string(recovered.old_world_size));
    stage_exactly(ckpt, step + 10);
    ckpt.finish();
  });
}

}  // namespace

TEST_CASE("disks of two hosts: 4 ranks, then 3, 6, 2, 8 and 4, each time seated otherwise") {
  HostsJob job(2);
  const bool from_disk = GENERATE(true, false);
  INFO((from_disk ? "files" : "memory alone"));
  leave_steps(job, 4, {10}, from_disk);
  if (from_disk) job.lose_memory();
  std::uint64_t step = 10;
  int before = 4;
  for (const int world : {3, 6, 2, 8, 4}) {
    INFO(before << " ranks, then " << world);
    job.seat = [world, step](int rank) {
      return static_cast<int>(static_cast<std::uint64_t>(rank) + step / 10) % 2 * (world > 1);
    };
    go_on(job, world, step, before);
    step += 10;
    before = world;
    CHECK(job.no_vaults());
  }
  // Whatever is left of older jobs goes with the next start.
  job.start(4, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_exactly(ckpt, step);
    stage_exactly(ckpt, step + 1);
    ckpt.finish();
  });
  for (const int host : {0, 1}) {
    INFO("host " << host);
    for (const auto& name : job.disk_of(host)) CHECK_THAT(name, Contains("of00004"));
  }
}

TEST_CASE("a rank that dies while old images travel loses nothing, nor does a piece that changes") {
  HostsJob job(3);
  job.seat = [](int rank) { return rank % 3; };
  leave_steps(job, 4, {10}, GENERATE(true, false));
  Meddler meddler;
  std::atomic<bool> armed{true};
  const std::string died = "here it ends";
  std::string damaged;  // the group in which a byte changes
  SECTION("a rank dies at its first piece") {
    meddler.before_receive = [&](int at, int, const std::string& group) {
      if (group == "old-pair-data" && at == 1 && armed.exchange(false))
        throw std::runtime_error(died);
    };
  }
  SECTION("a rank dies instead of connecting for pieces") {
    meddler.before_connect = [&](int at, const std::string& group) {
      if (group == "old-pair-data" && at == 1 && armed.exchange(false))
        throw std::runtime_error(died);
    };
  }
  std::size_t least = 4096, most = ~std::size_t{0};  // bytes of the message that changes
  SECTION("a byte of an image's ends changes on its way") { damaged = "train"; }
  SECTION("a byte of a piece changes on its way") { damaged = "old-pair-data"; }
  SECTION("a byte of what the ranks have changes on its way") {
    damaged = "train";
    least = most = 4;  // one byte for each old rank
  }
  SECTION("a byte of what a rank needs changes on its way") {
    damaged = "train";
    least = 48;
    most = 1000;
  }
  const bool damages = !damaged.empty();
  if (damages) {
    meddler.payload_of_group = [&](const std::string& group, Bytes& bytes) {
      if (group == damaged && bytes.size() >= least && bytes.size() <= most &&
          armed.exchange(false)) {
        bytes[bytes.size() / 4] ^= std::byte{1};
      }
    };
  }
  job.adjust = [&](ms::CheckpointerOptions& o) { o.transport = meddler.wrap(o.transport); };
  const auto fabric = std::make_shared<ms::InProcessFabric>();
  std::atomic<int> rejoined{0};
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    std::optional<ms::Checkpointer> ckpt(job.options(rank, 3, *fabric));
    ms::Dict state = state_at(rank, 3, 5);
    try {
      (void)ckpt->recover(state);
      throw std::logic_error("the recovery was not disturbed");
    } catch (const ms::RejoinNeeded&) {
      require(difference(state, state_at(rank, 3, 5)).empty(), "touched");
      ++rejoined;
      ckpt->rejoin();
    } catch (const std::runtime_error& e) {
      require(rank == 1 && !damages && e.what() == died, e.what());
      ckpt.reset();
      ckpt.emplace(job.options(rank, 3, *fabric));  // the replacement
    }
    const auto recovered = recover_exactly(*ckpt, 10);
    require(recovered.old_world_size == 4, std::to_string(recovered.old_world_size));
    stage_exactly(*ckpt, 20);
    ckpt->finish();
  }));
  CHECK(rejoined == (damages ? 3 : 2));
  CHECK(!armed);
}

TEST_CASE("where no rank reaches a host's disk the newest step that all reach is gone on from") {
  HostsJob job(4);
  job.seat = [](int rank) { return rank; };
  job.adjust = [](ms::CheckpointerOptions& o) { o.keep = 2; };
  // Every host has step 10 of each rank, in one way or another; step 20 lies apart.
  leave_steps(job, 4, {10}, true);
  for (const int from : {0, 1, 2, 3}) {
    for (const auto& name : job.disk_of(from)) {
      for (const int to : {0, 1, 2, 3}) {
        const auto path = "/disk" + std::to_string(to) + "/" + name;
        if (job.job.disk().stat(path)) continue;
        const auto file =
            ms::MappedFile::open(job.job.disk(), "/disk" + std::to_string(from) + "/" + name);
        ms::publish_atomically(job.job.disk(), path, file->bytes());
      }
    }
  }
  leave_steps(job, 4, {20}, true, 10);
  job.lose_memory();
  job.seat = [](int) { return 0; };
  go_on(job, 2, 10, 4);
}

TEST_CASE("a damaged block on one host's disk is no loss where another host has the image whole") {
  HostsJob job(2);
  job.seat = [](int rank) { return rank / 2; };  // each rank's holder is on the other host
  leave_steps(job, 4, {10}, true);
  job.seat = [](int rank) { return rank % 2; };
  job.lose_memory();
  // Each rank's own file has a wrong byte. Rank 0's is in the table, which its host needs.
  int damaged = 0;
  for (const int host : {0, 1}) {
    const auto directory = "/disk" + std::to_string(host);
    for (const auto& image : ms::list_images(job.job.disk(), directory, InProcessJob::kName)) {
      if (image.name.holder) continue;
      flip(job.job.disk(), image.path, image.bytes / 2);
      ++damaged;
    }
  }
  REQUIRE(damaged == 4);
  go_on(job, 3, 10, 4);
  const auto log = job.job.log();
  const auto passed_over = log.find("ignoring /disk0/");
  REQUIRE(passed_over != std::string::npos);
  CHECK_THAT(log.substr(passed_over), Contains("does not match its digest"));
}

TEST_CASE(
    "hosts whose disks have room for their own part go on from memory, whatever rank 0's has") {
  HostsJob job(2);
  leave_steps(job, 4, {10}, false);
  std::vector<std::unique_ptr<WatchedFileSystem>> systems;
  std::mutex mutex;
  std::uint64_t largest = 0;
  for (const int host : {0, 1}) {
    for (const auto& name : job.job.disk().list(HostsJob::vaults_of(host))) {
      const auto path = HostsJob::vaults_of(host) + "/" + name;
      largest = std::max(largest, job.job.disk().stat(path)->size);
    }
  }
  job.adjust = [&](ms::CheckpointerOptions& o) {
    const std::lock_guard lock(mutex);
    systems.push_back(std::make_unique<WatchedFileSystem>(*o.file_system));
    systems.back()->room = largest;  // for one image, while the four ranks had four
    systems.back()->room_of = o.directory;
    o.file_system = systems.back().get();
  };
  go_on(job, 3, 10, 4);
}
