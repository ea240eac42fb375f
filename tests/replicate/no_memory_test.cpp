// An allocation fails on one of the engine's threads, each in turn, once: the step fails or the
// generation ends in order, it is said, and the job goes on to its last step with every bit.
#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/tcp_store/server.hpp>
#include <meshstage/core/comm/tcp_store/store.hpp>
#include <meshstage/core/replicate/report.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/comm/membership_job.hpp"
#include "tests/conformance/ranks.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/failing_new.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/kept_errors.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/store_keys.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::allocation_failed;
using ms::test::fail_allocation;
using ms::test::InProcessJob;
using ms::test::recover_fresh;
using ms::test::recover_to;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::state_of;

constexpr std::uint64_t kSteps = 3;
constexpr std::chrono::seconds kForming(40);

/// Where both ranks of a job meet in one generation.
class Meeting {
 public:
  /// Waits for the other rank. Throws RejoinNeeded if the generation ends meanwhile, so nobody
  /// waits here for a rank that rejoins.
  void meet(ms::Checkpointer& ckpt) {
    const auto other = static_cast<std::size_t>(1 - ckpt.rank());
    (void)ckpt.held(1 - ckpt.rank());  // behind whatever the loop has failed at
    there_[1 - other] = ckpt.generation();
    while (there_[other] != ckpt.generation()) (void)ckpt.held(1 - ckpt.rank());
  }

 private:
  std::array<std::atomic<std::uint64_t>, 2> there_{};
};

/// Ends the program, and says at what, if a run waits for ever. A Catch assertion could not: the
/// threads that wait would be joined.
class Watchdog {
 public:
  explicit Watchdog(std::string run)
      : thread_([this, what = std::move(run)] {
          std::unique_lock lock(mutex_);
          if (over_.wait_for(lock, 2 * kForming, [this] { return done_; })) return;
          std::fprintf(stderr, "%s: no end after %d s\n", what.c_str(),
                       static_cast<int>(2 * kForming.count()));
          std::abort();
        }) {}
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
      over_.notify_all();
    }
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool done_ = false;
  std::thread thread_;
};

struct Ran {
  bool failed = false;       ///< The allocation was made, and failed.
  std::uint64_t formed = 0;  ///< The first generation of rank 0 from then on.
  std::string thrown;        ///< By what generations of rank 0 ended meanwhile.
  std::string log;
};

/// A job of two ranks: a recovery and kSteps steps, while the n-th allocation from then on fails on
/// the threads of that name. Ranks go on as the loop of the front page does.
Ran run_without_memory(const std::string& thread, int nth, bool over_sockets) {
  const Watchdog watchdog(thread + ", allocation " + std::to_string(nth));
  InProcessJob job(2);
  std::atomic<int> ready{0};
  std::string thrown;        // rank 0's
  std::uint64_t formed = 0;  // by rank 0
  std::atomic<bool> failed{true}, over{false};
  Meeting begun, trained, unarmed;
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = 2;
    o.deadline = std::chrono::seconds(4);
    o.forming_deadline = kForming;
    if (thread == "ms-conn1") o.connections = 2;
    if (over_sockets) o.transport = ms::make_tcp_transport({});
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    begun.meet(ckpt);
    if (++ready == 2) {
      fail_allocation(thread.c_str(), nth);
    }
    while (ready < 2) std::this_thread::yield();
    ckpt.rejoin();
    if (rank == 0) formed = ms::generation_in_run(ckpt.generation());
    std::uint64_t step = 0, complete = 0;
    for (bool finished = false, recovered = false, again = true; !finished;) try {
        if (!recovered) step = recover_fresh(ckpt).step;  // with every bit
        require(step >= complete, "a complete step was lost");
        recovered = true;
        while (step < kSteps) {
          auto staging = ckpt.stage(state_of(rank, step + 1), step + 1);
          ++step;
          const auto outcome = staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20)));
          if (outcome == ms::Outcome::kComplete) complete = step;
        }
        // A rank that fails in finish() is as one that dies there: others may be gone by then.
        trained.meet(ckpt);
        if (!allocation_failed()) failed = false;
        over = true;
        unarmed.meet(ckpt);
        if (std::exchange(again, false)) {  // what is left is whole, whatever failed
          ckpt.rejoin();
          recovered = false;
        } else {
          ckpt.finish();
          finished = true;
        }
      } catch (const ms::RejoinNeeded& e) {
        if (rank == 0 && !over) thrown += std::string(e.what()) + "\n";
        ckpt.rejoin();
        recovered = false;
      }
  }));
  return {failed, formed, thrown, job.log()};
}

}  // namespace

TEST_CASE("no memory on any thread of the engine, at any time: the job goes on") {
  // Not here, because they allocate nothing: Gloo's deadlines (ms-deadlines), the trace's thread
  // (ms-trace) and the crews mesh-copyN, ms-verifyN, ms-restoreN and ms-touchN, which copy, digest
  // and touch what the thread that runs the crew has laid out (and tell that thread what fails).
  // ms-conn1 is of the crew that does allocate. ms-progress allocates where a start or a recovery
  // has waited for a second: none is to do so here, and a failure would end its lines, not the
  // wait. ms-alive, ms-log and mesh-stager have cases below, and ms-nccl has one in tests/comm.
  const std::string thread =
      GENERATE("ms-forming", "ms-agent", "ms-copy", "ms-slots", "ms-send", "ms-recv", "ms-conn1",
               "ms-persist", "ms-store", "ms-verify", "ms-links", "ms-links over sockets");
  constexpr std::string_view kOverSockets = " over sockets";
  const bool over_sockets = thread.ends_with(kOverSockets);
  const std::string name = over_sockets ? thread.substr(0, thread.find(' ')) : thread;
  // The loop's thread makes most allocations, and each may leave another book half written.
  const auto after = [&](int nth) { return nth + (thread == "ms-agent" ? 5 : 1 + nth / 8); };
  constexpr int kEnough = 5000;  // more than a run of these steps makes
  int nth = 1;
  for (; nth < kEnough; nth = after(nth)) {
    INFO(thread << ", allocation " << nth);
    const auto began = std::chrono::steady_clock::now();
    const Ran ran = run_without_memory(name, nth, over_sockets);
    INFO(ran.log << ran.thrown);
    CHECK(std::chrono::steady_clock::now() - began < kForming / 2);  // no wait ran into it
    // One allocation failed, so at most one generation ended by it: that is said once.
    CHECK(times_in(ran.log, "cannot go on") <= (ran.failed ? 1 : 0));
    if (!ran.failed) break;  // so many were not made
    // An attempt to form ended by it, of which each rank that was in it says why.
    if (thread == "ms-forming") {
      CHECK(
          (ran.formed == 2 || times_in(ran.log, "could not wait for the outcome: no memory") > 0));
      continue;
    }
    // Rank 0's generation ended by it, and one of both says so.
    if (ran.thrown.empty()) continue;
    const bool told = ran.log.find("cannot go on") != std::string::npos ||
                      ran.thrown.find("no memory") != std::string::npos;
    CHECK(told);
  }
  INFO(thread);
  CHECK(nth > 1);  // it bites
  CHECK(nth < kEnough);
}

TEST_CASE("no memory on the log's thread: no warning is lost") {
  int nth = 1;
  for (bool failed = true; failed; ++nth) {
    INFO("allocation " << nth);
    std::vector<std::string> logged;
    std::string errors;
    {
      const ms::test::KeptErrors kept;
      {
        ms::replicate::Reporter reporter(
            "job", 0, std::make_shared<ms::replicate::Log>([&](const ms::LogLine& line) {
              logged.push_back(line.text);
            }),
            {}, {});
        fail_allocation("ms-log", nth);
        for (const char* const text : {"one of three", "two of three", "three of three"}) {
          reporter.warn(text);
        }
      }
      errors = kept.text();
    }
    failed = allocation_failed();
    for (const auto& line : logged) errors += line + "\n";
    for (const char* const text : {"one of three", "two of three", "three of three"}) {
      CHECK_THAT(errors, Catch::Matchers::Contains(text));
    }
  }
  CHECK(nth > 2);
}

TEST_CASE("no memory on the thread that answers newcomers: they get their answer later") {
  InProcessJob job(1);
  auto o = job.options(0);
  o.deadline = std::chrono::seconds(1);  // it looks for a question every ten milliseconds
  ms::Checkpointer ckpt(std::move(o));
  (void)recover_to(ckpt, 0);
  const auto key = [&](const std::string& what) {
    return ms::test::generation_key(InProcessJob::kName, ckpt.generation(), what);
  };
  int nth = 1;
  for (bool failed = true; failed; ++nth) {
    INFO("allocation " << nth);
    job.store()->remove(key("alive/0"));
    fail_allocation("ms-alive", nth);
    job.store()->set(key("asked"), "question " + std::to_string(nth));
    REQUIRE(job.store()->wait_for(key("alive/0"), ms::Deadline::after(std::chrono::seconds(20))) !=
            "");
    failed = allocation_failed();
  }
  CHECK(nth > 2);
  ckpt.finish();
}

TEST_CASE("no memory where a part ends: it ends, and the process does not") {
  struct Part {
    const char* name;
    std::function<std::shared_ptr<void>()> make;
  };
  const ms::Dict state = state_of(0, 1);
  const Part parts[] = {
      {"a rank's membership",
       []() -> std::shared_ptr<void> {
         ms::testing::Job job(1);
         auto member = job.member(0);
         (void)member->enter(0, ms::testing::soon());
         return member;
       }},
      {"a stager whose thread runs",
       [&]() -> std::shared_ptr<void> {
         auto stager = std::make_shared<ms::StateDictStager>();
         stager->stage_async(state).wait();
         return stager;
       }},
  };
  for (const Part& part : parts) {
    int nth = 1;
    for (bool failed = true; failed; ++nth) {
      INFO(part.name << ", allocation " << nth);
      auto made = part.make();
      std::thread([&] {
        pthread_setname_np(pthread_self(), "victim");
        fail_allocation("victim", nth);
        made.reset();
      }).join();
      failed = allocation_failed();
    }
    INFO(part.name);
    CHECK(nth > 2);  // it bites
  }
}

TEST_CASE("no memory on a stager's thread: that staging fails, and the next does not") {
  const ms::Dict state = state_of(0, 1);
  int nth = 1, fell = 0;
  for (bool failed = true; failed; ++nth) {
    INFO("allocation " << nth);
    ms::StateDictStager stager;
    fail_allocation("mesh-stager", nth);
    const auto soon = ms::Deadline::after(std::chrono::seconds(20));
    bool threw = false;
    try {
      const ms::Value staged = stager.stage_async(state).get(soon);  // no CHECK: it would catch
      CHECK_FALSE(ms::compare(state, staged));
    } catch (const std::bad_alloc&) {
      threw = true;
    }
    failed = allocation_failed();  // or it failed behind the value, which has come whole
    CHECK((failed || !threw));
    fell += threw ? 1 : 0;
    CHECK_FALSE(ms::compare(state, stager.stage_async(state).get(soon)));
  }
  CHECK(fell > 0);  // it bites
}

TEST_CASE("no memory on the thread of a store's server costs one client a connection") {
  using std::chrono::seconds;
  int nth = 1;
  for (bool failed = true; failed; ++nth) {
    INFO("allocation " << nth);
    ms::StoreServer server({});
    const auto store = [&server] {
      const std::string port = server.address().substr(server.address().rfind(':') + 1);
      return ms::TcpStore({.host = "127.0.0.1", .port = port});
    };
    fail_allocation("ms-store", nth);
    const auto soon = ms::Deadline::after(seconds(10));
    auto waiter = std::async(std::launch::async, [&] {
      return store().wait_for("key", ms::Deadline::after(seconds(10)));
    });
    auto writer = store();
    CHECK(writer.compare_and_create("key", "value", soon) == "value");
    CHECK(waiter.get() == "value");
    CHECK(writer.list("k", soon) == std::vector<std::string>{"key"});
    writer.set("another", "one", soon);
    CHECK(store().get("another", soon) == "one");
    failed = allocation_failed();
  }
  CHECK(nth > 2);
}

TEST_CASE(
    "a receive for which there is no memory leaves nothing behind that writes into its target") {
  const bool gloo = GENERATE(false, true);
  constexpr std::byte kUntouched{0xEE};
  int nth = 1;
  for (bool failed = true; failed; ++nth) {
    INFO((gloo ? "Gloo" : "in process") << ", allocation " << nth);
    ms::InProcessFabric fabric;
    const auto groups = ms::testing::make_groups(
        [&](int rank) { return gloo ? ms::make_tcp_transport({}) : fabric.attach(rank); }, 2,
        ms::testing::Linked::kAll);
    std::vector<std::byte> target(64, kUntouched);
    failed = false;
    std::thread([&, &failed = failed] {
      pthread_setname_np(pthread_self(), "victim");
      fail_allocation("victim", nth);
      try {
        (void)groups[0]->receive(1, 7, target);
      } catch (const std::exception&) {  // no memory, here or in the module
        failed = true;
      }
      (void)allocation_failed();
    }).join();
    if (!failed) break;
    // What the peer sends now must not arrive; what follows it, if the group still works, has.
    const std::vector<std::byte> source(64, std::byte{1});
    std::vector<std::byte> next(64);
    try {
      const auto lost = groups[1]->send(0, 7, source);
      const auto sent = groups[1]->send(0, 8, source);
      const auto received = groups[0]->receive(1, 8, next);
      received->wait(ms::Deadline::after(std::chrono::seconds(2)));
    } catch (const ms::Error&) {  // the group ended with the receive
    }
    CHECK(std::all_of(target.begin(), target.end(), [](std::byte b) { return b == kUntouched; }));
  }
  CHECK(nth > 1);
}
