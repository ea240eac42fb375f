// The parts of one rank's engine without their driver: the events that they feed are kept for the
// test, and no protocol acts on them.
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/replicate/decisions.hpp>
#include <meshstage/core/replicate/finisher.hpp>
#include <meshstage/core/replicate/inbox.hpp>
#include <meshstage/core/replicate/lender.hpp>
#include <meshstage/core/replicate/listener.hpp>
#include <meshstage/core/replicate/losses.hpp>
#include <meshstage/core/replicate/restorer.hpp>

#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/require.hpp"

namespace meshstage::test {

/// Longer than anything takes that a test of a part waits for.
inline Deadline soon() { return Deadline::after(std::chrono::seconds(20)); }

/// A rank's options, and the disk in them, which fails or hangs where the test says so.
struct FaultyRank {
  explicit FaultyRank(CheckpointerOptions of) : options(std::move(of)), disk(*options.file_system) {
    options.file_system = &disk;
  }
  FaultyRank(const FaultyRank&) = delete;
  FaultyRank& operator=(const FaultyRank&) = delete;
  CheckpointerOptions options;
  FaultyFileSystem disk;
};

/// One rank's parts in generation kGeneration. The rank has no peers' links or groups but those
/// that the test gives it (played_peers.hpp). Threads: one, the test's.
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
    engine.feed = [this](protocol::Event event) {
      if (on_fed) on_fed(event);
      keep("", std::move(event));
    };
    engine.lose = [this](int peer, ErrorKind, const std::string& why) {
      keep("lose: " + std::to_string(peer) + " " + why, {});
    };
    engine.lose_in_transfer = [this](int peer, ErrorKind, const std::string& why) {
      keep("lose_in_transfer: " + std::to_string(peer) + " " + why, {});
    };
    engine.lose_store = [this](const std::string& why) { keep("lose_store: " + why, {}); };
    engine.lose_vault = [this](const std::string& why) { keep("lose_vault: " + why, {}); };
    enter(kGeneration);
  }
  PartBench(const PartBench&) = delete;
  PartBench& operator=(const PartBench&) = delete;
  ~PartBench() {
    for (const auto& go_on : at_end) go_on();
    store->go_on();
    leave();
    persister.stop();
    engine.loop.stop();
  }

  /// Enters a generation and leaves it as Agent and Driver do.
  void enter(std::uint64_t number) {
    engine.generation.number = number;
    engine.generation.claim = std::to_string(engine.world_size) + " first 0 options";
    engine.generation.rank = engine.rank;
    engine.generation.world_size = engine.world_size;
    engine.collective_waits = std::make_shared<replicate::CollectiveWaits>();
    engine.gate.open();
    engine.pace.enter();
    in_loop([this, number] {
      engine.present = number;
      losses.enter();
      collectives.enter();
    });
    engine.bridge.open();
    engine.scope.open();
  }
  /// `meanwhile` runs when the parts have let go, before the tasks of the generation are waited
  /// for: there a test lets go of what it holds.
  void leave(const std::function<void()>& meanwhile = {}) {
    engine.gate.lose({ErrorKind::kCancelled, -1, "the generation was left"});
    const auto cause = engine.gate.loss()->error();
    engine.generation.abort(cause);
    engine.bridge.abort(cause);
    engine.pace.leave();
    in_loop([&] {
      own.let_go(cause);
      slots.forget_waiting();
    });
    store_worker.settle(Deadline::after(std::chrono::seconds(20)));
    if (meanwhile) meanwhile();
    engine.generation.close();
    engine.bridge.close();
    engine.scope.close();
    in_loop([&] {
      engine.present = 0;
      collectives.leave();
      own.leave(cause);
      persister.lose(cause);
      inbox.leave();
      lender.leave();
      streams.leave();
      slots.leave();
    });
    engine.generation = {};
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
  /// Waits until no stream is left.
  void wait_for_streams() {
    std::promise<void> idle;
    in_loop([&] { streams.when_idle([&] { idle.set_value(); }); });
    require(idle.get_future().wait_for(std::chrono::seconds(20)) == std::future_status::ready,
            "a stream does not end");
    in_loop([] {});
  }
  /// Waits until the slots that were asked for are ready.
  void wait_for_slots() {
    std::promise<void> behind;
    slots.post([&] { behind.set_value(); });
    behind.get_future().wait();
    in_loop([] {});
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

  /// What the test answers as the protocol, on the loop, while a part feeds an event.
  std::function<void(const protocol::Event&)> on_fed;
  /// What ~PartBench runs first: lets go on what a test holds.
  std::vector<std::function<void()>> at_end;
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
  replicate::Restorer restorer{engine, store_worker, verifier, streams, inbox};
  replicate::Decisions decisions{engine, store_worker, persister, own, inbox};
  replicate::Losses losses{engine, store_worker, slots, own, persister};
  replicate::CollectiveProgress collectives{engine};
  replicate::Listener listener{engine, verifier, losses, collectives};
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
