// A job that writes no files comes back with another number of ranks: its images stay in memory,
// beside the new slots, until a step of the new number is complete.
#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/os/system_error.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/changing_job.hpp"
#include "tests/support/require.hpp"
#include "tests/support/watched_file_system.hpp"

namespace ms = meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

/// A ChangingJob without files, on hosts with vaults of their own. No directory can be made.
struct MemoryJob : ChangingJob {
  explicit MemoryJob(int hosts) {
    for (int host = 0; host < hosts; ++host) job.disk().make_directories(vaults_of(host));
    change = [this](ms::CheckpointerOptions& o, int world) {
      const int host = seat(o.environment->rank);
      const std::lock_guard lock(mutex_);
      in_use.insert(host);
      o.environment->local_world_size = 0;
      for (int rank = 0; rank < world; ++rank)
        o.environment->local_world_size += seat(rank) == host;
      o.directory.clear();
      o.vault_directory = vaults_of(host);
      o.persist_every = 0;
      if (store) o.store_object = store;
      o.deadline = std::chrono::seconds(5);
      systems_.push_back(std::make_unique<WatchedFileSystem>(*o.file_system));
      systems_.back()->on_rename = [](const std::filesystem::path& to) {
        if (to.extension() == ".safetensors") throw ms::SystemError("rename", to.native(), EROFS);
      };
      systems_.back()->room_of = o.vault_directory;
      systems_.back()->room = room;
      o.file_system = systems_.back().get();
      adjust(o);
    };
  }
  static std::string vaults_of(int host) { return "/vault" + std::to_string(host); }
  /// Of all hosts that are `in_use`, the files of vaults whose names have that.
  std::vector<std::string> left(const std::string& mark = "") {
    std::vector<std::string> names;
    for (const int host : in_use) {
      for (auto& name : job.disk().list(vaults_of(host))) {
        if (name.find(mark) != std::string::npos) names.push_back(std::move(name));
      }
    }
    return names;
  }
  void lose(int host) {
    for (const auto& name : job.disk().list(vaults_of(host))) {
      job.disk().unlink(vaults_of(host) + "/" + name);
    }
  }
  /// Old rank r and its holder sit on different hosts; so do those of two new ranks.
  std::function<int(int rank)> seat = [](int rank) { return rank / 2 % 2; };
  std::function<void(ms::CheckpointerOptions&)> adjust = [](ms::CheckpointerOptions&) {};
  std::set<int> in_use;               ///< The hosts of the last start's ranks.
  std::optional<std::uint64_t> room;  ///< Of each host's memory.
  std::shared_ptr<ms::Store> store;   ///< In place of that of before.

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<WatchedFileSystem>> systems_;
};

/// `world` ranks go on from step `from` (0: begin anew), stage these steps and end without
/// finish().
void leave_steps(MemoryJob& job, int world, const std::vector<std::uint64_t>& steps,
                 std::uint64_t from = 0) {
  std::barrier<> all(world);
  job.start(world, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    begin_or_go_on(ckpt, from);
    for (const auto step : steps) stage_exactly(ckpt, step);
    all.arrive_and_wait();  // else the first to leave fails the step for the others
  });
}

/// `world` ranks have step `step`, of `before` ranks if that is given, go on, and finish.
void go_on(MemoryJob& job, int world, std::uint64_t step, std::optional<int> before) {
  job.in_use.clear();
  job.start(world, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    const auto recovered = recover_exactly(ckpt, step);
    if (before) require(recovered.old_world_size == *before, std::to_string(*before));
    if (recovered.old_world_size != 0) require(recovered.source == ms::Source::kHolderMemory, "");
    stage_exactly(ckpt, step + 1);
    stage_exactly(ckpt, step + 2);
    ckpt.finish();
  });
  CHECK(job.left().empty());
}

struct DiesHere : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// `world` ranks recover, and rank `who` dies of a DiesHere at that point, once it has come there.
/// Nobody's recover() need return. Unless it `must`, the step may be complete by then.
void die_at(MemoryJob& job, int world, int who, const std::string& point, bool must = true) {
  std::barrier<> all(world);
  std::atomic<bool> died{false};
  std::mutex mutex;
  std::string said;
  job.start(world, [&](ms::CheckpointerOptions o, int rank) {
    o.observer = [&, rank](const ms::PointEvent& event) {
      if (rank != who || event.name != point) return;
      died = true;
      throw DiesHere(point);
    };
    std::optional<ms::Checkpointer> ckpt(std::move(o));
    ms::Dict state = state_at(rank, world, 5);
    try {
      (void)ckpt->recover(state);
    } catch (const ms::Error& e) {
      const std::lock_guard lock(mutex);
      said += "\nrank " + std::to_string(rank) + ": " + e.what();
    }
    all.arrive_and_wait();
  });
  INFO(said);
  CHECK((died || !must));
}

}  // namespace

TEST_CASE("without files another number of ranks goes on from memory alone, and nothing is left") {
  const auto [before, now] =
      GENERATE(std::pair(4, 3), std::pair(2, 4), std::pair(3, 1), std::pair(4, 2));
  INFO(before << " ranks, then " << now);
  MemoryJob job(2);
  if (now == 1) job.seat = [](int) { return 0; };
  leave_steps(job, before, {10, 15});
  go_on(job, now, 15, before);
  CHECK_THAT(job.job.log(), !Contains("newer than what is gone on from"));
}

TEST_CASE("without files, two hosts: 4 ranks, then 3, 6, 2, 8 and 4, each time seated otherwise") {
  MemoryJob job(2);
  leave_steps(job, 4, {10});
  std::uint64_t step = 10;
  for (const int world : {3, 6, 2, 8, 4}) {
    INFO(world << " ranks");
    job.seat = [world, step](int rank) {
      return static_cast<int>(static_cast<std::uint64_t>(rank) + step / 10) % 2 * (world > 1);
    };
    leave_steps(job, world, {step + 10}, step);
    step += 10;
  }
  go_on(job, 4, step, 0);
}

TEST_CASE("once a step of the new number is complete the old images are gone") {
  MemoryJob job(2);
  leave_steps(job, 4, {15});
  CHECK(job.left("-i1-").size() == 4 * 4);  // of steps 0 and 15
  leave_steps(job, 3, {20}, 15);
  CHECK(job.left("-i1").empty());
  CHECK(job.left("-r3-i").empty());
  go_on(job, 3, 20, 0);
}

TEST_CASE("without files a death at any point of the first step loses nothing") {
  const std::string point = GENERATE(as<std::string>(), "restoring", "own-writing",
                                     "replica-writing", "own-sealed", "replica-sealed", "voted");
  const int who = GENERATE(0, 2);
  const int now = GENERATE(3, 4, 2);
  INFO("rank " << who << " at " << point << ", then " << now << " ranks");
  MemoryJob job(2);
  leave_steps(job, 4, {10, 15});
  die_at(job, 3, who, point);
  die_at(job, 3, who, point, false);  // with other slots written
  go_on(job, now, 15, std::nullopt);
}

TEST_CASE("without files the loss of either host beside a death loses nothing") {
  const std::string point = GENERATE(as<std::string>(), "restoring", "replica-sealed", "voted");
  const int host = GENERATE(0, 1);
  const int now = GENERATE(2, 3, 4);
  INFO("host " << host << " at " << point << ", then " << now << " ranks");
  MemoryJob job(2);
  leave_steps(job, 4, {10, 15});
  job.seat = [](int rank) { return rank; };
  die_at(job, 2, 1, point);  // the step may be complete all the same
  job.lose(host);
  job.seat = [host](int) { return 1 - host; };
  go_on(job, now, 15, std::nullopt);
}

TEST_CASE("without files an image that is out of reach is named, and the old number finds it") {
  MemoryJob job(2);
  job.seat = [](int rank) { return rank % 2; };  // old rank 1 and its holder sit on host 1
  leave_steps(job, 4, {15});
  job.seat = [](int) { return 0; };
  std::vector<std::string> said(3);
  std::barrier<> all(3);
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, 3, 5);
    try {
      (void)ckpt.recover(state);
    } catch (const ms::StructureMismatch& e) {
      said[static_cast<std::size_t>(rank)] = e.what();
    }
    all.arrive_and_wait();
  });
  for (const auto& text : said) {
    CHECK_THAT(text, Contains("was made by 4 ranks, this job has 3") &&
                         Contains("not every rank's image of it is in reach"));
  }
  job.seat = [](int rank) { return rank % 2; };
  go_on(job, 4, 15, 0);
}

TEST_CASE("without files and without memory for the new slots nothing is lost") {
  MemoryJob job(2);
  leave_steps(job, 4, {15});
  job.room = 100;
  std::barrier<> all(3);
  std::vector<std::string> said(3);
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, 3, 5);
    try {
      (void)ckpt.recover(state);
    } catch (const ms::Error& e) {
      said[static_cast<std::size_t>(rank)] = e.what();
    }
    all.arrive_and_wait();
  });
  for (const auto& text : said) CHECK(!text.empty());
  CHECK(std::any_of(said.begin(), said.end(), [](const std::string& text) {
    return text.find("no room for half of the vault") != std::string::npos;
  }));
  job.room.reset();
  go_on(job, GENERATE(4, 3), 15, std::nullopt);
}

TEST_CASE("hosts with memory for six images of each rank go on with another number of ranks") {
  MemoryJob job(2);
  std::mutex mutex;
  std::vector<std::unique_ptr<ms::MemoryFileSystem>> hosts(2), processes;
  const auto begin = [&](std::uint64_t memory) {
    for (auto& host : hosts) {
      host = std::make_unique<ms::MemoryFileSystem>(
          ms::MemoryFileSystemOptions{.capacity = memory, .max_file_bytes = 1U << 20U});
    }
    leave_steps(job, 4, {10, 15, 20});
  };
  job.adjust = [&](ms::CheckpointerOptions& o) {
    const std::lock_guard lock(mutex);
    auto& host = *hosts[static_cast<std::size_t>(job.seat(o.environment->rank))];
    processes.push_back(host.as_process(5000 + static_cast<std::int64_t>(processes.size())));
    o.file_system = processes.back().get();
  };
  begin(std::uint64_t{1} << 30U);
  job.store = std::make_shared<ms::InMemoryStore>();  // the next job is another one
  const std::uint64_t used = std::max(hosts[0]->used(), hosts[1]->used());
  begin(used + used / 2 + used / 8);  // images of three ranks are a little larger
  leave_steps(job, 3, {25, 30}, 20);
  leave_steps(job, 4, {35}, 30);
  job.start(4, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_exactly(ckpt, 35);
    ckpt.finish();
  });
  for (const auto& host : hosts) CHECK(host->used() == 0);
}

TEST_CASE("an own image that is rotten is no loss where its replica is kept") {
  MemoryJob job(2);
  leave_steps(job, 4, {15});
  for (int host : {0, 1}) {
    for (const auto& name : job.job.disk().list(MemoryJob::vaults_of(host))) {
      if (name.find("-r1-i1-own") == std::string::npos) continue;
      const auto file =
          job.job.disk().open(MemoryJob::vaults_of(host) + "/" + name, ms::OpenMode::kReadWrite);
      const std::uint64_t at = 4096 + 4096 + 100;  // behind the header and the manifest
      std::array<std::byte, 1> byte{};
      (void)file->read_at(byte, at);
      byte[0] ^= std::byte{1};
      ms::write_fully(*file, byte, at);
    }
  }
  go_on(job, 3, 15, 4);
}
