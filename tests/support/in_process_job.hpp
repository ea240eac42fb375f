// A whole job in one process: ranks are threads, the wire an InProcessFabric, vaults and files a
// MemoryFileSystem. Nothing touches the disk, nothing is left behind.
#pragma once
#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/os/memory_file_system.hpp>

#include "tests/support/require.hpp"

namespace meshstage::test {

class InProcessJob {
 public:
  static constexpr const char* kName = "in-process";
  explicit InProcessJob(int world_size) : world_size_(world_size) {
    disk_.make_directories("/vault");
    disk_.make_directories("/disk");
  }

  /// Options of a new process that plays `rank`: each call is another process.
  CheckpointerOptions options(int rank) { return options(rank, fabric_); }
  /// The same with links of another fabric: a start of the job beside one that lives.
  CheckpointerOptions options(int rank, InProcessFabric& fabric) {
    const std::lock_guard lock(mutex_);
    processes_.push_back(disk_.as_process(next_process_++));
    CheckpointerOptions o;
    o.job = kName;
    o.directory = "/disk";
    o.vault_directory = "/vault";
    o.deadline = std::chrono::seconds(20);
    o.forming_deadline = std::chrono::seconds(60);
    o.block_bytes = 4096;
    RankEnvironment environment;
    environment.rank = rank;
    environment.world_size = world_size_;
    environment.local_rank = rank;
    environment.local_world_size = world_size_;
    o.environment = environment;
    o.transport = fabric.attach(rank);
    o.store_object = store_;
    o.file_system = processes_.back().get();
    o.log = [this, writes = writers_](const LogLine& line) {
      const std::lock_guard log_lock(mutex_);
      log_ += line.text + "\n";
    };
    return o;
  }

  /// Removes what a rank's host had: its vault (its files too if `disk`).
  void wipe(int rank, bool files = false) {
    const std::string mark = "-r" + std::to_string(rank) + "-i";
    for (const auto& name : disk_.list("/vault")) {
      if (name.find(mark) != std::string::npos) disk_.unlink("/vault/" + name);
    }
    if (!files) return;
    for (const auto& name : disk_.list("/disk")) disk_.unlink("/disk/" + name);
  }

  InProcessFabric& fabric() { return fabric_; }
  MemoryFileSystem& disk() { return disk_; }
  std::shared_ptr<InMemoryStore> store() { return store_; }
  [[nodiscard]] int world_size() const { return world_size_; }
  /// Every line that was logged. The log has a thread of its own in each Checkpointer: it is
  /// complete once they and their options are gone, and until then this throws.
  std::string log() {
    const std::lock_guard lock(mutex_);
    require(writers_.use_count() == 1, "the log is read while it may still be written");
    return log_;
  }

 private:
  const int world_size_;
  MemoryFileSystem disk_;
  InProcessFabric fabric_;
  std::shared_ptr<InMemoryStore> store_ = std::make_shared<InMemoryStore>();
  std::mutex mutex_;
  std::int64_t next_process_ = 1000;
  std::vector<std::unique_ptr<MemoryFileSystem>> processes_;
  std::string log_;
  std::shared_ptr<int> writers_ = std::make_shared<int>();  ///< Held by each log that writes here.
};

/// Runs `body(rank)` for each rank in a thread of its own, and waits. What a body throws becomes
/// text: element r is rank r's, empty if it returned.
inline std::vector<std::string> run_ranks(const std::vector<int>& ranks,
                                          const std::function<void(int)>& body) {
  std::vector<std::string> errors(ranks.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        body(ranks[i]);
      } catch (const std::exception& e) {
        errors[i] = e.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

inline std::vector<int> all_ranks(int world_size) {
  std::vector<int> ranks;
  for (int r = 0; r < world_size; ++r) ranks.push_back(r);
  return ranks;
}

}  // namespace meshstage::test
