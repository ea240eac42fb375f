// Each part of the engine is held while the others go on: votes and deaths pass, whatever hangs.
#include <barrier>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using Clock = std::chrono::steady_clock;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::HangingStore;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::stage_one;
using ms::test::state_of;
using std::chrono::milliseconds;

/// One rank's seams, each of which can be made to hang.
struct Seams {
  explicit Seams(InProcessJob& job, int rank)
      : options(job.options(rank)),
        store(std::make_shared<HangingStore>(job.store())),
        fs(*options.file_system) {
    options.deadline = std::chrono::seconds(2);
    options.store_object = store;
    options.file_system = &fs;
    options.pace = &pace;
  }
  Seams(const Seams&) = delete;
  Seams& operator=(const Seams&) = delete;
  void go_on() {
    store->go_on();
    fs.unblock();
    pace.open();
  }
  ms::CheckpointerOptions options;
  std::shared_ptr<HangingStore> store;
  ms::FaultyFileSystem fs;
  ms::test::Gate pace{true};
};

/// The same ranks meet at the barrier; one that throws waits there no more.
template <class Body>
auto meeting(std::barrier<>& everyone, Body body) {
  return [&everyone, body](int rank) {
    try {
      body(rank);
    } catch (...) {
      everyone.arrive_and_drop();
      throw;
    }
  };
}

struct Part {
  std::string name;
  std::function<void(Seams&)> hang;
  std::function<void(Seams&)> wait_until_held;
};

}  // namespace

TEST_CASE("whatever part of a rank hangs, every rank hears of a death") {
  using Op = ms::FileOperation;
  const auto nothing = [](Seams&) {};
  const auto on_disk = [](Op op) { return [op](Seams& s) { s.fs.block(op); }; };
  const auto disk_hangs = [](Seams& s) { s.fs.wait_until_blocked(); };
  const std::vector<Part> parts = {
      {"nothing", nothing, nothing},
      {"the Store", [](Seams& s) { s.store->hang(); }, nothing},
      {"room in the vault", on_disk(Op::kReserve), disk_hangs},
      {"a new slot", on_disk(Op::kMap), disk_hangs},
      {"copying", [](Seams& s) { s.pace.close(); }, [](Seams& s) { s.pace.wait_for_a_piece(); }},
  };
  for (const Part& part : parts) {
    INFO(part.name);
    InProcessJob job(3);
    std::barrier everyone(3);
    std::promise<Clock::time_point> killed;
    const auto death = killed.get_future().share();
    std::vector<milliseconds> heard(2);
    all_good(run_ranks(all_ranks(3), meeting(everyone, [&](int rank) {
                         Seams seams(job, rank);
                         auto ckpt = std::make_unique<ms::Checkpointer>(seams.options);
                         (void)recover_to(*ckpt, 0);
                         everyone.arrive_and_wait();
                         if (rank == 2) {
                           everyone.arrive_and_wait();  // the part of rank 1 hangs
                           killed.set_value(Clock::now());
                           job.fabric().kill(2);
                           everyone.arrive_and_wait();
                           return;
                         }
                         if (rank == 1) part.hang(seams);
                         auto staging = ckpt->stage(state_of(rank, 1), 1);
                         if (rank == 1) {
                           part.wait_until_held(seams);
                         }
                         everyone.arrive_and_wait();
                         std::string what = "nobody was lost";
                         try {
                           (void)staging.outcome().get(
                               ms::Deadline::after(std::chrono::seconds(10)));
                         } catch (const ms::PeerLost& e) {
                           what = e.rank() == 2 ? "" : e.what();
                         }
                         heard[static_cast<std::size_t>(rank)] =
                             std::chrono::duration_cast<milliseconds>(Clock::now() - death.get());
                         everyone.arrive_and_wait();
                         seams.go_on();
                         require(what.empty(), what);
                       })));
    CHECK(heard[0] < milliseconds(1000));
    CHECK(heard[1] < milliseconds(1000));
  }
}

TEST_CASE("a vote passes a rank whose parts hang") {
  // Rank 3 is below rank 1 in the tree. Rank 0 passes the step by: rank 3 hears it from rank 1,
  // whose memory is being reserved.
  InProcessJob job(4);
  std::barrier everyone(4);
  std::promise<Clock::time_point> voted;
  const auto vote = voted.get_future().share();
  milliseconds heard{};
  all_good(
      run_ranks(all_ranks(4), meeting(everyone, [&](int rank) {
                  Seams seams(job, rank);
                  ms::Checkpointer ckpt(seams.options);
                  (void)recover_to(ckpt, 0);
                  everyone.arrive_and_wait();
                  if (rank == 1) seams.fs.block(ms::FileOperation::kReserve);
                  ms::Staging staging;
                  if (rank != 0) staging = ckpt.stage(state_of(rank, 1), 1);
                  if (rank == 1) seams.fs.wait_until_blocked();
                  everyone.arrive_and_wait();
                  if (rank == 0) {
                    voted.set_value(Clock::now());
                    staging = ckpt.stage(state_of(rank, 2), 2);
                  }
                  if (rank == 3) {
                    require(staging.outcome().get(ms::Deadline::after(std::chrono::seconds(10))) ==
                                ms::Outcome::kFailed,
                            "the step is complete");
                    heard = std::chrono::duration_cast<milliseconds>(Clock::now() - vote.get());
                  }
                  everyone.arrive_and_wait();
                  seams.go_on();
                  if (rank == 1 || rank == 2) (void)staging.outcome().get();
                  everyone.arrive_and_wait();
                })));
  CHECK(heard < milliseconds(500));
}

TEST_CASE("a disk that hangs costs the steps that need its slots, and nobody waits for it") {
  InProcessJob job(2);
  std::barrier everyone(2);
  std::vector<std::vector<ms::Outcome>> outcomes(2);
  all_good(run_ranks(all_ranks(2), meeting(everyone, [&](int rank) {
                       Seams seams(job, rank);
                       seams.options.persist_every = 0;
                       ms::Checkpointer ckpt(seams.options);
                       ckpt.persist_now();  // step 0
                       (void)recover_to(ckpt, 0);
                       while (ckpt.stats().persisted == 0) std::this_thread::yield();  // step 0
                       if (rank == 1) seams.fs.block(ms::FileOperation::kSync);
                       for (std::uint64_t step = 1; step <= 8; ++step) {
                         const auto begin = Clock::now();
                         if (step == 2) ckpt.persist_now();
                         outcomes[static_cast<std::size_t>(rank)].push_back(stage_one(ckpt, step));
                         require(Clock::now() - begin < seams.options.deadline,
                                 "step " + std::to_string(step) + " kept the trainer waiting");
                         if (rank == 1 && step == 2) seams.fs.wait_until_blocked();
                       }
                       everyone.arrive_and_wait();
                       seams.go_on();
                       // Once the disk answers, steps are complete again.
                       for (std::uint64_t step = 9; ckpt.stats().complete == 4; ++step)
                         (void)stage_one(ckpt, step);
                       ckpt.finish();
                     })));
  using ms::Outcome;
  std::vector<Outcome> expected(8, Outcome::kFailed);
  expected[0] = expected[1] = expected[2] = Outcome::kComplete;
  CHECK(outcomes[0] == expected);
  CHECK(outcomes[1] == expected);
  CHECK_THAT(job.log(), contains_text("has been written to disk for"));
  CHECK_THAT(job.log(), contains_text("rank 1 voted no"));
}
