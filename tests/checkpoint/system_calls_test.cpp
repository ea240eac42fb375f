// Every system call that vaults and files make fails in turn, of an owner that is a holder too, in
// a step and in a recovery: a clear error, nothing lost, and it works once the cause is gone. Power
// is lost, writes are short: what was on disk is on disk.
#include <array>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <future>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/disk_contents.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/sanitized.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::Contents;
using ms::test::difference;
using ms::test::InProcessJob;
using ms::test::recover_fresh;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::stage_one;
using ms::test::state_of;

/// Waits until every complete step of this process was written to disk, or was not.
ms::Stats settle(const ms::Checkpointer& ckpt) {
  for (;;) {
    const auto s = ckpt.stats();
    if (s.persisted + s.persist_failed == s.complete) return s;
    std::this_thread::yield();
  }
}

/// The state grows, so that slots do.
ms::Dict growing(int rank, std::uint64_t step) {
  return state_of(rank, step, 500 + 50 * static_cast<std::int64_t>(step));
}

// Of two ranks, each call of one's recovery fails in turn, from the memory of the other or from
// disk.
void fail_each_call_of_a_recovery(bool from_disk) {
  const int error = GENERATE(EIO, ENOSPC, EACCES, EMFILE);
  if (ms::test::kSanitized && error != EIO) return;  // the order of things is the same
  const int where = GENERATE(0, 1);  // the root, which serves; the rank that fetches
  InProcessJob job(2);
  std::barrier everyone(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = 1;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
    (void)settle(ckpt);
    everyone.arrive_and_wait();
  }));
  job.wipe(1);
  if (from_disk) job.wipe(0);
  const Contents vaults = ms::test::read_all(job.disk(), "/vault");
  const Contents files = ms::test::read_all(job.disk(), "/disk");
  int fired = 0, told = 0;
  for (std::uint64_t nth = 1;; ++nth) {
    INFO("call " << nth << ", errno " << error << ", at rank " << where
                 << (from_disk ? ", from disk" : ", from memory"));
    std::optional<ms::FaultyFileSystem> faulty;
    std::vector<int> failures(2);
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      auto o = job.options(rank);
      o.persist_every = 0;
      if (rank == where) {
        faulty.emplace(*o.file_system);
        faulty->fail_any(nth, error);
        o.file_system = &*faulty;
      }
      std::optional<ms::Checkpointer> ckpt;
      bool again = false;
      std::string so_far;
      for (;;) {
        ms::Dict state = state_of(rank, 9);
        try {
          if (!ckpt) {
            ckpt.emplace(o);
          } else if (again) {
            ckpt->rejoin();
          }
          const auto step = ckpt->recover(state).step;
          if (step != 2)
            throw ms::Unrecoverable("step " + std::to_string(step) + " recovered" + so_far);
          const auto different = difference(state, state_of(rank, 2));
          if (!different.empty()) throw ms::Unrecoverable(different);
          // Who returned while the other did not hears of it here. The call that is to fail may be
          // one of step 3: that one alone fails then.
          if (stage_one(*ckpt, 3) == ms::Outcome::kFailed) stage_all(*ckpt, {4});
          return;
        } catch (const ms::Unrecoverable&) {
          throw;
        } catch (const ms::Timeout&) {
          throw;  // nobody may wait for a rank whose disk failed
        } catch (const ms::Error& e) {
          so_far += std::string(", after: ") + e.what();
          again = ckpt.has_value();
          if (++failures[static_cast<std::size_t>(rank)] > 2) throw;
        }
      }
    }));
    const bool hit = faulty->fired().has_value();
    told += failures[0] + failures[1] > 0 ? 1 : 0;
    ms::test::put_back(job.disk(), "/vault", vaults);
    ms::test::put_back(job.disk(), "/disk", files);
    if (!hit) break;
    ++fired;
  }
  CHECK(fired > 20);
  CHECK(told > 5);
}

}  // namespace

TEST_CASE("each system call of a step fails in turn, at one of two ranks: the next step is whole") {
  const int error = GENERATE(EIO, ENOSPC, EACCES, EMFILE);
  if (ms::test::kSanitized && error != EIO) return;  // the order of things is the same
  InProcessJob job(2);
  std::barrier everyone(2);
  int fired = 0, failed = 0, not_on_disk = 0;
  std::uint64_t last = 0;
  bool done = false, begun = false;
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = 1;
    ms::FaultyFileSystem faulty(*o.file_system);  // rank 1's: it owns an image, and holds one
    if (rank == 1) o.file_system = &faulty;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    std::uint64_t step = 0;
    std::string wrong;
    const auto stage = [&](std::uint64_t k) -> std::optional<ms::Staging> {
      try {
        return ckpt.stage(growing(rank, k), k);
      } catch (const ms::Error& e) {  // refused before it began
        if (std::string(e.what()).find("errno") == std::string::npos) wrong += e.what();
        return std::nullopt;
      }
    };
    const auto outcome_of = [](ms::Staging& staging) {
      return staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20)));
    };
    stage_all(ckpt, {++step});
    for (std::uint64_t nth = 1; !done; ++nth) {
      const auto before = settle(ckpt);
      everyone.arrive_and_wait();
      if (rank == 1) faulty.fail_any(nth, error);
      auto staging = stage(++step);
      // Where rank 1 could not begin, rank 0 hears so with the next step.
      everyone.arrive_and_wait();
      // If rank 0's offer came first, it is rank 1's stage() that says why the step failed.
      if (rank == 1 && !staging) ++failed;
      if (rank == 1 && staging) {
        const auto outcome = outcome_of(*staging);
        const auto after = settle(ckpt);
        failed += outcome == ms::Outcome::kFailed ? 1 : 0;
        if (after.persist_failed > before.persist_failed) {
          ++not_on_disk;  // but complete: the loss of a disk fails no step
          if (outcome != ms::Outcome::kComplete) wrong += "a step failed with its file";
        }
      }
      if (rank == 1) {
        done = !faulty.fired().has_value();
        fired += done ? 0 : 1;
        faulty.clear_faults();
      }
      everyone.arrive_and_wait();
      auto next = stage(++step);
      if (!next || outcome_of(*next) != ms::Outcome::kComplete) {
        wrong += "step " + std::to_string(step) + " after call " + std::to_string(nth);
      }
      const auto persisted = settle(ckpt).persisted;
      if (persisted <= before.persisted) wrong += "nothing was persisted after it";
      everyone.arrive_and_wait();
    }
    everyone.arrive_and_wait();
    // A step that no disk takes is complete in memory, and is what comes back.
    if (rank == 1) faulty.fail_from(1, error);
    auto lost = stage(++step);
    if (rank == 1) faulty.clear_faults();
    if (rank == 1) begun = lost.has_value();
    everyone.arrive_and_wait();
    // A slot that must grow cannot: then rank 1 did not begin, and no outcome comes.
    if (lost && begun) (void)outcome_of(*lost);
    if (rank == 0) last = step;
    everyone.arrive_and_wait();
    ms::test::require(wrong.empty(), wrong);
  }));
  CHECK(fired > 20);
  CHECK(failed > 0);
  CHECK(not_on_disk > 5);
  // What the last complete step was comes back, whatever had failed.
  std::vector<std::uint64_t> steps(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = growing(rank, last - 1);
    try {
      steps[static_cast<std::size_t>(rank)] = ckpt.recover(state).step;
      const auto different = difference(state, growing(rank, last - 1));
      ms::test::require(different.empty(), different);
    } catch (const ms::StructureMismatch&) {  // it is the newer one
      ms::Dict newer = growing(rank, last);
      steps[static_cast<std::size_t>(rank)] = ckpt.rejoin().recover(newer).step;
    }
  }));
  CHECK(steps[0] == steps[1]);
  CHECK(steps[0] >= last - 1);
}

TEST_CASE(
    "each system call of a recovery from memory fails in turn: all hear of it, and the next one "
    "recovers") {
  fail_each_call_of_a_recovery(false);
}

TEST_CASE(
    "each system call of a recovery from disk fails in turn: all hear of it, and the next one "
    "recovers") {
  fail_each_call_of_a_recovery(true);
}

TEST_CASE("power is lost at each system call of a step: what was persisted before it is there") {
  int older = 0, newer = 0;
  for (std::uint64_t nth = 1;; ++nth) {
    INFO("call " << nth);
    InProcessJob job(2);
    std::barrier everyone(2);
    std::atomic<bool> hit{false};
    std::array<std::atomic<bool>, 2> begun{};
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      auto o = job.options(rank);
      o.persist_every = 1;
      ms::FaultyFileSystem faulty(*o.file_system);
      o.file_system = &faulty;
      faulty.shorten_writes(1000);  // fewer bytes than are asked for
      ms::Checkpointer ckpt(std::move(o));
      (void)recover_to(ckpt, 0);
      stage_all(ckpt, {1, 2});
      (void)settle(ckpt);
      everyone.arrive_and_wait();
      faulty.fail_from(nth, EIO);  // the host is going down: at both ranks
      std::optional<ms::Staging> staging;
      try {
        staging = ckpt.stage(state_of(rank, 3), 3);
        begun[static_cast<std::size_t>(rank)] = true;
      } catch (const ms::IoError&) {
      }
      everyone.arrive_and_wait();
      // Where the other could not begin, there is no outcome.
      if (begun[0] && begun[1] && staging->outcome().get() == ms::Outcome::kComplete) {
        (void)settle(ckpt);
      }
      everyone.arrive_and_wait();
      if (faulty.fired()) hit = true;
      everyone.arrive_and_wait();
    }));
    job.disk().lose_power();
    job.wipe(0);
    job.wipe(1);
    std::vector<std::uint64_t> steps(2);
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      ms::Checkpointer ckpt(job.options(rank));
      steps[static_cast<std::size_t>(rank)] = recover_fresh(ckpt).step;
      ckpt.finish();
    }));
    CHECK(steps[0] == steps[1]);
    CHECK((steps[0] == 2 || steps[0] == 3));
    (steps[0] == 2 ? older : newer) += 1;
    if (!hit) {
      CHECK(steps[0] == 3);
      break;
    }
  }
  CHECK(older > 10);
  CHECK(newer > 0);
}

TEST_CASE("finish() waits for every step that is still to be written, and leaves no vault") {
  InProcessJob job(1);
  auto o = job.options(0);
  o.persist_every = 1;
  ms::FaultyFileSystem faulty(*o.file_system);
  o.file_system = &faulty;
  ms::Checkpointer ckpt(std::move(o));
  (void)recover_to(ckpt, 0);
  while (ckpt.stats().persisted < 1) std::this_thread::yield();  // step 0
  faulty.block(ms::FileOperation::kRename);  // the disk hangs: two steps are to be written
  stage_all(ckpt, {1, 2});
  faulty.wait_until_blocked();
  faulty.block(ms::FileOperation::kRename);  // the first one goes on, the second hangs
  faulty.wait_until_blocked();
  while (ckpt.stats().persisted < 2) std::this_thread::yield();
  auto finished = std::async(std::launch::async, [&] { ckpt.finish(); });
  // Nothing can be waited for here: this is the time in which it would go wrong.
  CHECK(finished.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
  faulty.unblock();
  finished.get();
  CHECK(ckpt.stats().persisted == 3);
  CHECK(job.disk().list("/vault").empty());
}
