#pragma once
#include <chrono>
#include <string>
#include <thread>

#include <meshstage/core/comm/store.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"

namespace meshstage::testing {

constexpr int kWorld = 4;  // ranks of a job, unless a test says otherwise

/// The folder of a job of rank_workers, with its store, where they write what they have done.
class RankNotes {
 public:
  std::string note(const std::string& what, int generation, int rank) {
    return store_.wait_for(what + "/" + std::to_string(generation) + "/" + std::to_string(rank),
                           Deadline::after(std::chrono::seconds(60)));
  }
  /// Until each of `world` ranks knows a step from `step` on to be complete. Fails as soon as one
  /// is lost.
  void train(int generation, int step, int world = kWorld) {
    for (int r = 0; r < world; ++r) {
      while (std::stoi(note("complete", generation, r)) < step) {
        const auto key = "lost/" + std::to_string(generation) + "/" + std::to_string(r);
        if (const auto text = store_.get(key)) FAIL("rank " << r << " lost " << *text);
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
  }
  FileStore& store() { return store_; }

 protected:
  TemporaryFolder folder_;
  FileStore store_{folder_.path() + "/store"};
};

}  // namespace meshstage::testing
