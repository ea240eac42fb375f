// A job in one process whose wire is not to be trusted, and what each of its ranks says.
#pragma once
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "tests/support/in_process_job.hpp"
#include "tests/support/meddling_transport.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/wire_context.hpp"

namespace meshstage::test {

/// What each rank says of itself; waits for a line. Threads: any.
class Lines {
 public:
  void attach(CheckpointerOptions& options) {
    const int rank = options.environment->rank;
    options.log = [this, rank](const LogLine& line) {
      const std::lock_guard lock(mutex_);
      text_[rank] += line.text + "\n";
      changed_.notify_all();
    };
  }
  /// True once rank's lines contain that; false after a time in which it should have come.
  bool wait_for(int rank, const std::string& part) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10),
                             [&] { return text_[rank].find(part) != std::string::npos; });
  }
  std::string of(int rank) {
    const std::lock_guard lock(mutex_);
    return text_[rank];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, std::string> text_;
};

/// An InProcessJob over a wire of the meddler's. Set `meddler` up before the first options() or
/// live(). Threads: options() any.
class MeddledJob {
 public:
  explicit MeddledJob(int world_size) : inner_(world_size) {}

  /// Options of a new process that plays `rank`, over the meddler's wire.
  CheckpointerOptions options(int rank) {
    auto o = inner_.options(rank);
    o.transport = meddler.wrap(o.transport);
    o.borrowed = borrowed;
    o.connections = connections;
    lines.attach(o);
    if (adjust) adjust(o);
    return o;
  }
  /// A life of all ranks, each a new process on a thread of its own; none may throw. Main thread.
  void live(const std::function<void(int rank, Checkpointer& ckpt)>& life) {
    all_good(run_ranks(all_ranks(inner_.world_size()), [&](int rank) {
      Checkpointer ckpt(options(rank));
      life(rank, ckpt);
    }));
  }
  /// As the ranks' control messages have it.
  [[nodiscard]] protocol::WireContext wire_context() const {
    return test::wire_context(inner_.world_size());
  }

  void wipe(int rank) { inner_.wipe(rank); }
  MemoryFileSystem& disk() { return inner_.disk(); }

  Meddler meddler;
  BorrowedTensors borrowed;                          ///< Set before the first options().
  unsigned connections = 1;                          ///< The same.
  std::function<void(CheckpointerOptions&)> adjust;  ///< The same; for options of one test.
  Lines lines;

 private:
  InProcessJob inner_;
};

}  // namespace meshstage::test
