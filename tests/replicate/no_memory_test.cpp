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
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/in_process/fabric.hpp>

#include "tests/conformance/ranks.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

/// Which allocation fails: the n-th of all threads of that name from now on.
std::atomic<const char*> victims{nullptr};
std::atomic<int> countdown{0};

bool is_to_fail() {
  const char* const name = victims.load(std::memory_order_acquire);
  if (name == nullptr) return false;
  char mine[16] = "";
  if (pthread_getname_np(pthread_self(), mine, sizeof mine) != 0) return false;
  if (std::string_view(mine) != name) return false;
  if (countdown.fetch_sub(1) != 1) return false;
  victims = nullptr;
  return true;
}

void* allocate(std::size_t bytes) {
  if (is_to_fail()) throw std::bad_alloc();
  if (void* const at = std::malloc(bytes == 0 ? 1 : bytes)) return at;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
// A sanitizer's own would not be freed by what follows.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return std::malloc(bytes);
}
// Not inlined: else g++ takes them for a mismatch with a new that it did not inline.
[[gnu::noinline]] void operator delete(void* at) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete[](void* at) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete(void* at, std::size_t) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete[](void* at, std::size_t) noexcept { std::free(at); }

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
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
  bool failed = false;  ///< The allocation was made, and failed.
  std::string thrown;   ///< By what generations of rank 0 ended meanwhile.
  std::string log;
};

/// A job of two ranks: a recovery and kSteps steps, while the n-th allocation from then on fails on
/// the threads of that name. Ranks go on as the loop of the front page does.
Ran run_without_memory(const std::string& thread, int nth) {
  const Watchdog watchdog(thread + ", allocation " + std::to_string(nth));
  InProcessJob job(2);
  std::atomic<int> ready{0};
  std::string thrown;  // rank 0's
  std::atomic<bool> failed{true}, over{false};
  Meeting begun, trained, unarmed;
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = 2;
    o.deadline = std::chrono::seconds(4);
    o.forming_deadline = kForming;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    begun.meet(ckpt);
    if (++ready == 2) {
      countdown = nth;
      victims = thread.c_str();
    }
    while (ready < 2) std::this_thread::yield();
    ckpt.rejoin();
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
        if (victims.exchange(nullptr) != nullptr) failed = false;
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
  return {failed, thrown, job.log()};
}

}  // namespace

TEST_CASE("no memory on any thread of the engine, at any time: the job goes on") {
  // The threads that help a copy (mesh-copy) allocate nothing.
  // The threads that help a copy (mesh-copy) allocate nothing.
  if (std::getenv("NM_THREAD") != nullptr) {
    const auto ran = run_without_memory(std::getenv("NM_THREAD"), std::atoi(std::getenv("NM_NTH")));
    std::fprintf(stderr, "%s", ran.log.c_str());
    return;
  }
  const std::string thread = GENERATE("ms-agent", "ms-copy", "ms-slots", "ms-send", "ms-recv",
                                      "ms-persist", "ms-store", "ms-verify", "ms-links");
  // The loop's thread makes most allocations, and each may leave another book half written.
  const auto after = [&](int nth) { return nth + (thread == "ms-agent" ? 5 : 1 + nth / 8); };
  constexpr int kEnough = 5000;  // more than a run of these steps makes
  int nth = 1;
  for (; nth < kEnough; nth = after(nth)) {
    INFO(thread << ", allocation " << nth);
    const auto began = std::chrono::steady_clock::now();
    const Ran ran = run_without_memory(thread, nth);
    INFO(ran.log << ran.thrown);
    CHECK(std::chrono::steady_clock::now() - began < kForming / 2);  // no wait ran into it
    if (!ran.failed) break;                                          // so many were not made
    // Rank 0's generation ended by it, and one of both says so.
    if (ran.thrown.empty()) continue;
    const bool told = ran.log.find("cannot go on") != std::string::npos ||
                      ran.thrown.find("no memory") != std::string::npos;
    CHECK(told);
  }
  CHECK(nth > 1);  // it bites
  CHECK(nth < kEnough);
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
      countdown = nth;
      victims = "victim";
      try {
        (void)groups[0]->receive(1, 7, target);
      } catch (const std::exception&) {  // no memory, here or in the module
        failed = true;
      }
      victims = nullptr;
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
