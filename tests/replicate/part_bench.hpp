// The parts of one rank's engine without their driver: the events that they feed are kept for the
// test, and no protocol acts on them.
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <meshstage/core/replicate/finisher.hpp>
#include <meshstage/core/replicate/inbox.hpp>
#include <meshstage/core/replicate/lender.hpp>
#include <meshstage/core/replicate/listener.hpp>
#include <meshstage/core/replicate/losses.hpp>

#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/require.hpp"

namespace meshstage::test {

/// One rank's parts in generation kGeneration. The rank has no peers' links but those of the test.
/// Threads: one, the test's.
class PartBench {
 public:
  /// What a part fed, or called of the engine.
  struct Fed {
    std::string called;  ///< "lose_store: why" and the like; empty: an event.
    protocol::Event event;
    template <class E>
    [[nodiscard]] const E& as() const {
      require(called.empty(), "the engine was called: " + called);
      const E* const it = std::get_if<E>(&event);
      require(it != nullptr, "another event was fed");
      return *it;
    }
  };

 private:
  // The engine's threads use them until it ends, so they are made before it.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Fed> fed_;
  std::vector<std::string> lines_;

 public:
  static constexpr std::uint64_t kGeneration = 7;

  explicit PartBench(const CheckpointerOptions& options)
      : store(std::make_shared<HangingStore>(options.store_object)),
        engine(logging_here(options), 0,
               [this](const std::exception_ptr& failure) {
                 keep("failed: " + text_of(failure), protocol::Broken{});
               },
               {}),
        files(engine.fs, options.directory, options.job, engine.rank, engine.world_size,
              &engine.reads),
        store_worker(engine, store) {
    engine.feed = [this](protocol::Event event) { keep("", std::move(event)); };
    engine.lose_store = [this](const std::string& why) { keep("lose_store: " + why, {}); };
    engine.generation.number = kGeneration;
    engine.generation.claim = std::to_string(engine.world_size) + " first 0 options";
    engine.generation.rank = engine.rank;
    engine.generation.world_size = engine.world_size;
    engine.gate.open();
    in_loop([this] {
      engine.present = kGeneration;
      losses.enter();
    });
  }
  PartBench(const PartBench&) = delete;
  PartBench& operator=(const PartBench&) = delete;
  ~PartBench() {
    store->go_on();
    engine.scope.close();
    store_worker.settle(Deadline::after(std::chrono::seconds(20)));
    engine.loop.stop();
  }

  void in_loop(const std::function<void()>& task) { engine.loop.run(task); }

  /// Waits for what a part feeds, or calls of the engine, next.
  Fed next() {
    std::unique_lock lock(mutex_);
    require(changed_.wait_for(lock, std::chrono::seconds(20), [this] { return !fed_.empty(); }),
            "nothing was fed");
    Fed first = std::move(fed_.front());
    fed_.pop_front();
    return first;
  }
  /// After the calls of the Store and the tasks of the loop that are under way.
  bool nothing_fed() {
    store_worker.settle(Deadline::after(std::chrono::seconds(20)));
    in_loop([] {});
    const std::lock_guard lock(mutex_);
    return fed_.empty();
  }

  /// Waits for a line of the log with that part. False: there is none.
  bool logs(const std::string& part) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] {
      return std::any_of(lines_.begin(), lines_.end(), [&](const std::string& line) {
        return line.find(part) != std::string::npos;
      });
    });
  }

  const std::shared_ptr<HangingStore> store;
  replicate::Engine engine;
  Persistence files;
  // In Driver's order.
  replicate::StoreWorker store_worker;
  replicate::Slots slots{engine};
  replicate::Streams streams{engine};
  replicate::Verifier verifier{engine, files};
  replicate::Copier copier{engine};
  replicate::Persister persister{engine, slots, files};
  replicate::OwnStep own{engine, slots, copier, streams};
  replicate::Inbox inbox{engine, slots, streams, verifier};
  replicate::Lender lender{engine, streams, verifier};
  replicate::Losses losses{engine, store_worker, own, persister};
  replicate::Listener listener{engine, losses};
  replicate::Finisher finisher{engine, store_worker, slots, streams, inbox, losses};

 private:
  CheckpointerOptions logging_here(CheckpointerOptions options) {
    options.log = [this](const LogLine& line) {
      const std::lock_guard lock(mutex_);
      lines_.push_back(line.text);
      changed_.notify_all();
    };
    return options;
  }
  void keep(std::string called, protocol::Event event) {
    const std::lock_guard lock(mutex_);
    fed_.push_back({std::move(called), std::move(event)});
    changed_.notify_all();
  }
};

}  // namespace meshstage::test
