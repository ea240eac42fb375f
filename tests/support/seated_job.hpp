// A job whose ranks sit on hosts, and which comes back with its ranks on other ones. A host is a
// directory of vaults: what lies in another one is out of a process's reach.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace meshstage::test {

/// The host of each rank.
using Seats = std::vector<int>;
inline std::string directory_of(int host) { return "/host" + std::to_string(host); }
inline std::string disk_of(int host) { return "/disk" + std::to_string(host); }

class SeatedJob {
 public:
  explicit SeatedJob(int world, bool files = false, bool local_disks = false)
      : job_(world), files_(files), local_disks_(local_disks) {}

  /// `on_host`: so many ranks sit on that host.
  CheckpointerOptions options(int rank, int host, int on_host = 1) {
    auto o = job_.options(rank);
    o.environment->local_world_size = on_host;
    o.vault_directory = directory_of(host);
    o.deadline = std::chrono::seconds(6);  // a start beside ranks that are stopped waits for half
    o.persist_every = files_ ? 1 : 0;
    if (local_disks_) o.directory = disk_of(host);
    if (store_) o.store_object = store_;
    return o;
  }
  /// One life of the job: it recovers that step and stages those. `finishes`: and ends for good.
  void live(const Seats& seats, std::uint64_t finds, const std::vector<std::uint64_t>& stages,
            bool finishes = false) {
    all_good(run_ranks(all_ranks(job_.world_size()), [&](int rank) {
      const int host = seats[static_cast<std::size_t>(rank)];
      const auto on_host = std::count(seats.begin(), seats.end(), host);
      Checkpointer ckpt(options(rank, host, static_cast<int>(on_host)));
      (void)recover_to(ckpt, finds);
      stage_all(ckpt, stages);
      if (local_disks_) on_disk(ckpt, stages.back() + 1);
      if (finishes) ckpt.finish();
    }));
  }
  /// Stages a step and waits until each rank has it on disk.
  static void on_disk(Checkpointer& ckpt, std::uint64_t step) {
    auto staging = ckpt.stage(state_of(ckpt.rank(), step), step);
    const auto disk = staging.persisted().get(Deadline::after(std::chrono::seconds(20)));
    require(disk == DiskOutcome::kEverywhere, "not on every disk");
  }
  std::shared_ptr<Store> store() { return job_.store(); }
  /// Removes all vaults of a host.
  void lose(int host) {
    for (const auto& name : job_.disk().list(directory_of(host))) {
      job_.disk().unlink(directory_of(host) + "/" + name);
    }
  }
  /// Removes of a host's slots those whose files' names lack `mark`.
  void keep_only(int host, const std::string& mark) {
    for (const auto& name : files(host)) {
      const bool slot =
          name.find("-own") != std::string::npos || name.find("-w") != std::string::npos;
      if (slot && name.find(mark) == std::string::npos) {
        job_.disk().unlink(directory_of(host) + "/" + name);
      }
    }
  }
  /// Of a host's vaults, the files that end so.
  std::vector<std::string> files(int host, const std::string& mark = "") {
    std::vector<std::string> found;
    if (!job_.disk().stat(directory_of(host))) return found;
    for (const auto& name : job_.disk().list(directory_of(host))) {
      if (name.find(mark) != std::string::npos) found.push_back(name);
    }
    return found;
  }
  /// What a host's own disk has.
  std::vector<std::string> disk_files(int host) {
    if (!job_.disk().stat(disk_of(host))) return {};
    return job_.disk().list(disk_of(host));
  }
  std::string log() { return job_.log(); }
  void lose_store() { store_ = std::make_shared<InMemoryStore>(); }

 private:
  InProcessJob job_;
  std::shared_ptr<Store> store_;
  bool files_;
  bool local_disks_;
};

}  // namespace meshstage::test
