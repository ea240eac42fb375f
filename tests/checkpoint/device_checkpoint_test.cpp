// Jobs whose tensors are on devices: staged, replicated, recovered, and what goes wrong meanwhile.
// On the fake driver, or on a real one.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <future>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/checkpoint/device_jobs.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/cuda.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using device_jobs::in_time;
using device_jobs::kHost;
using device_jobs::kLarge;
using device_jobs::kOdd;
using device_jobs::kSmall;
using device_jobs::options;
using device_jobs::replica_has;
using device_jobs::stage_soon;
using device_jobs::tensor;
using device_jobs::Trainer;
using ms::test::all_ranks;
using ms::test::Cuda;
using ms::test::InProcessJob;
using ms::test::require;
using ms::test::run_ranks;

constexpr std::uint64_t kSeeds = 50;

}  // namespace

TEST_CASE("device job: staged behind the trainer's stream, held, and recovered in place") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    InProcessJob job(2);
    std::barrier everyone(2);
    const auto errors = run_ranks(all_ranks(2), [&](int rank) {
      Trainer trainer(cuda, rank);
      ms::Checkpointer ckpt(options(job, trainer, seed % 2 == 1));
      trainer.update(0);
      (void)ckpt.recover(trainer.state);
      require(replica_has(ckpt.held(1 - rank).state, static_cast<unsigned char>(101 - rank * 100)),
              "step 0 is not what the trainer began with");
      for (std::uint64_t step = 1; step < 4; ++step) {
        require(trainer.stage(ckpt, step) == ms::Outcome::kComplete, "a step failed");
      }
      const auto replica = ckpt.held(1 - rank);
      const auto theirs = static_cast<unsigned char>(1 + (1 - rank) * 100 + replica.id.step);
      require(replica.id.step >= 2 && replica_has(replica.state, theirs),
              "a replica has what was not staged");
      require(ckpt.stats().page_locked_bytes > kLarge, "the slots are not page-locked");
      everyone.arrive_and_wait();
      // Half a step more, which recover() comes behind.
      trainer.update(9);
      require(ckpt.rejoin().recover(trainer.state).step == 3, "another step");
      require(trainer.has(3), "the own image has what was not staged");
      ckpt.finish();
    });
    INFO("seed " << seed << "\n" << job.log());
    CHECK(errors == std::vector<std::string>(2));
  }
}

TEST_CASE("device job: a lost rank's tensors come back from its holder, onto its device") {
  for (std::uint64_t seed = 0; seed < kSeeds; seed += 10) {
    Cuda cuda(seed);
    InProcessJob job(2);
    std::barrier everyone(2);
    auto errors = run_ranks(all_ranks(2), [&](int rank) {
      Trainer trainer(cuda, rank);
      auto ckpt = std::make_unique<ms::Checkpointer>(options(job, trainer));
      (void)ckpt->recover(trainer.state);
      require(trainer.stage(*ckpt, 1) == ms::Outcome::kComplete, "a step failed");
      everyone.arrive_and_wait();
    });
    for (const auto& error : errors) REQUIRE(error == "");
    job.wipe(1);
    errors = run_ranks(all_ranks(2), [&](int rank) {
      Trainer trainer(cuda, rank);
      trainer.update_device(77);
      ms::Checkpointer ckpt(options(job, trainer));
      const auto recovered = ckpt.recover(trainer.state);
      require(recovered.step == 1, "recovered step " + std::to_string(recovered.step));
      require(recovered.source == (rank == 0 ? ms::Source::kOwnMemory : ms::Source::kHolderMemory),
              "from elsewhere");
      require(trainer.has(1), "recovered another state");
      require(trainer.stage(ckpt, 2) == ms::Outcome::kComplete, "the next step failed");
      ckpt.finish();
    });
    INFO(job.log());
    for (const auto& error : errors) REQUIRE(error == "");
  }
}

TEST_CASE("device job: stage() does not wait for the device, and staged() means its event") {
  Cuda cuda;
  if (Cuda::real()) return;
  InProcessJob job(2);
  std::barrier everyone(2);
  std::atomic<int> held{0};
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    Trainer trainer(cuda, rank);
    ms::Checkpointer ckpt(options(job, trainer));
    (void)ckpt.recover(trainer.state);
    require(trainer.stage(ckpt, 1) == ms::Outcome::kComplete, "a step failed");
    everyone.arrive_and_wait();
    trainer.update(2);
    if (rank == 0) Cuda::fake().hold(true);
    everyone.arrive_and_wait();
    auto staging = ckpt.stage(trainer.state, 2);
    staging.before_update(trainer.where());
    trainer.update_device(255);
    require(!staging.staged().ready(), "staged before the device copied anything");
    ++held;
    everyone.arrive_and_wait();
    if (rank == 0) Cuda::fake().hold(false);
    staging.staged().wait(in_time());
    require(staging.outcome().get(in_time()) == ms::Outcome::kComplete, "a held step failed");
    require(ckpt.rejoin().recover(trainer.state).step == 2 && trainer.has(2), "another state");
    ckpt.finish();
  });
  INFO(job.log());
  for (const auto& error : errors) CHECK(error == "");
  CHECK(held == 2);
}

TEST_CASE("device run: with overlap the device waits for its copies, and no step is torn") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    InProcessJob job(2);
    const auto errors = run_ranks(all_ranks(2), [&](int rank) {
      Trainer trainer(cuda, rank);
      trainer.update(0);
      ms::Checkpointer ckpt(options(job, trainer, seed % 2 == 1));
      const auto body = [&](ms::RunStep& step) {
        const auto held = ckpt.held(1 - rank);
        const auto theirs = static_cast<unsigned char>(1 + (1 - rank) * 100 + held.id.step);
        require(replica_has(held.state, theirs), "a replica has what was not staged");
        step.before_update();
        trainer.update_device(255);
        trainer.update(step.number() + 1);
      };
      require(ckpt.run(trainer.state, 5, body, {.overlap = true, .finish = false}) == 5,
              "five steps");
      require(ckpt.rejoin().recover(trainer.state).step == 5 && trainer.has(5), "another state");
      ckpt.finish();
    });
    INFO("seed " << seed << "\n" << job.log());
    REQUIRE(errors == std::vector<std::string>(2));
  }
}

namespace {

// Holds the copying of the CPU's tensor until `changed` is set, but no longer than a while.
class PaceThatWaits final : public ms::Pace {
 public:
  void before(std::uint64_t bytes, ms::Watermark&) override {
    if (bytes != kHost) return;
    const auto end = ms::Deadline::after(std::chrono::milliseconds(30));
    while (!changed && !end.expired()) std::this_thread::yield();
    if (changed) ++late;
  }
  std::atomic<bool> changed{false};
  std::atomic<int> late{0};
};

}  // namespace

TEST_CASE("device run: before_update() waits for the CPU's tensors, and not for the device") {
  Cuda cuda;
  if (Cuda::real()) return;
  InProcessJob job(1);
  Trainer trainer(cuda, 0);
  trainer.update(0);
  PaceThatWaits pace;
  auto o = options(job, trainer);
  o.pace = &pace;
  ms::Checkpointer ckpt(std::move(o));
  const auto body = [&](ms::RunStep& step) {
    step.before_update();  // under hold: a wait for the device would have no end
    pace.changed = true;
    trainer.update(step.number() + 1);
    Cuda::fake().hold(false);
    while (ckpt.stats().complete <= step.number()) std::this_thread::yield();
    pace.changed = false;
    Cuda::fake().hold(step.number() > 0 && step.number() < 3);  // stage() comes next
  };
  CHECK(ckpt.run(trainer.state, 4, body, {.overlap = true, .finish = false}) == 4);
  CHECK(pace.late == 0);
  ckpt.rejoin();
  CHECK(ckpt.recover(trainer.state).step == 4);
  CHECK(trainer.has(4));
  ckpt.finish();
}

TEST_CASE("device run: a body that forgets before_update(), or captures a graph, is told so") {
  Cuda cuda;
  InProcessJob job(1);
  Trainer trainer(cuda, 0);
  trainer.update(0);
  ms::Checkpointer ckpt(options(job, trainer));
  const bool forgets = GENERATE(true, false);
  const auto body = [&](ms::RunStep& step) {
    if (step.number() < 2) return step.before_update();
    if (forgets) return;
    cuda.begin_capture(trainer.stream);
    CHECK_THROWS_WITH(step.before_update(), contains_text("captured"));
    CHECK(cuda.end_capture(trainer.stream));
    step.before_update();
    step.stop();
  };
  const ms::RunOptions how{.overlap = true};
  if (forgets) {
    CHECK_THROWS_WITH(ckpt.run(trainer.state, 5, body, how), contains_text("before_update()"));
  } else {
    CHECK(ckpt.run(trainer.state, 5, body, how) == 3);
  }
}

TEST_CASE("device job: stage() on a stream that is being captured throws before any call") {
  Cuda cuda;
  InProcessJob job(1);
  Trainer trainer(cuda, 0);
  ms::Checkpointer ckpt(options(job, trainer, GENERATE(false, true)));
  (void)ckpt.recover(trainer.state);
  REQUIRE(trainer.stage(ckpt, 1) == ms::Outcome::kComplete);
  cuda.begin_capture(trainer.stream);
  const auto records = Cuda::real() ? 0 : Cuda::fake().calls("cuEventRecord");
  CHECK_THROWS_WITH(ckpt.stage(trainer.state, 2), contains_text("captured"));
  if (!Cuda::real()) CHECK(Cuda::fake().calls("cuEventRecord") == records);
  CHECK(cuda.end_capture(trainer.stream));
  CHECK(trainer.stage(ckpt, 3) == ms::Outcome::kComplete);
  ckpt.finish();
}

TEST_CASE("device job: what a device's copy damaged is refused by its receiver") {
  Cuda cuda;
  if (Cuda::real()) return;
  const bool drop = GENERATE(true, false);
  const bool snapshot = GENERATE(true, false);
  CAPTURE(drop, snapshot);
  InProcessJob job(2);
  std::barrier everyone(2);
  std::promise<void> sealed;  // rank 0's image of step 3, damaged or not
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    Trainer trainer(cuda, rank);
    auto o = options(job, trainer, snapshot);
    if (rank == 0) {
      o.observer = [&](const ms::PointEvent& event) {
        if (event.point == ms::Point::kOwnSealed && event.id.step == 3) sealed.set_value();
      };
    }
    ms::Checkpointer ckpt(std::move(o));
    (void)ckpt.recover(trainer.state);
    for (std::uint64_t step = 1; step < 3; ++step)
      require(trainer.stage(ckpt, step) == ms::Outcome::kComplete, "a step failed");
    // One rank's copies after the other's, so that the damaged run is known: the kernel copies two
    // small ones. (With a snapshot the step is staged before anything leaves the device.)
    if (rank == 1) everyone.arrive_and_wait();
    if (rank == 0) Cuda::fake().damage_copy(3, drop);
    trainer.update(3);
    auto staging = stage_soon(ckpt, trainer.state, 3);
    staging.staged().wait(in_time());
    if (rank == 0) {
      require(sealed.get_future().wait_for(std::chrono::seconds(20)) == std::future_status::ready,
              "no image of step 3");
      everyone.arrive_and_wait();
    }
    require(staging.outcome().get(in_time()) == ms::Outcome::kFailed, "a damaged step is complete");
    require(trainer.stage(ckpt, 4) == ms::Outcome::kComplete, "the step behind it failed");
    require(replica_has(ckpt.held(1 - rank).state, static_cast<unsigned char>(105 - rank * 100)),
            "a replica has what was not staged");
    everyone.arrive_and_wait();
    require(ckpt.rejoin().recover(trainer.state).step == 4 && trainer.has(4), "another state");
    ckpt.finish();
  });
  INFO(job.log());
  for (const auto& error : errors) CHECK(error == "");
  CHECK_THAT(job.log(), contains_text("does not match its digest; it holds large"));
}

TEST_CASE("device job: slots that cannot be page-locked are used without, with one warning") {
  Cuda cuda;
  if (Cuda::real()) return;
  InProcessJob job(1);
  Trainer trainer(cuda, 0);
  {
    ms::Checkpointer ckpt(options(job, trainer));
    Cuda::fake().fail_function("cuMemHostRegister", 1, 1);
    trainer.update(0);
    (void)ckpt.recover(trainer.state);
    CHECK(trainer.stage(ckpt, 1) == ms::Outcome::kComplete);
    CHECK(ckpt.stats().page_locks_refused == 1);
    (void)ckpt.rejoin().recover(trainer.state);
    CHECK(trainer.has(1));
    ckpt.finish();
  }
  CHECK(times_in(job.log(), "cannot be page-locked") == 1);
}

TEST_CASE("device job: with a snapshot the trainer goes on before anything is copied to the host") {
  Cuda cuda;
  if (Cuda::real()) return;
  InProcessJob job(1);
  Trainer trainer(cuda, 0);
  ms::Checkpointer ckpt(options(job, trainer, true));
  // Slots that are not page-locked: copies to them block the thread that issues them. (The first
  // call is for the snapshot's list.)
  Cuda::fake().fail_function("cuMemHostRegister", 2, 1);
  trainer.update(0);
  (void)ckpt.recover(trainer.state);
  REQUIRE(trainer.stage(ckpt, 1) == ms::Outcome::kComplete);
  const auto bytes = Cuda::fake().device_bytes();
  trainer.update(2);
  Cuda::fake().hold(true);
  auto staging = ckpt.stage(trainer.state, 2);
  staging.before_update(trainer.where());
  trainer.update_device(255);
  CHECK_FALSE(staging.staged().ready());
  Cuda::fake().hold(false);
  staging.staged().wait(in_time());
  CHECK(staging.outcome().get(in_time()) == ms::Outcome::kComplete);
  (void)ckpt.rejoin().recover(trainer.state);
  CHECK(trainer.has(2));
  CHECK(ckpt.stats().snapshot_bytes > kLarge + kOdd + kSmall);
  CHECK(ckpt.stats().snapshots_refused == 0);
  CHECK(Cuda::fake().device_bytes() == bytes);  // made once
  ckpt.finish();
}

TEST_CASE("device job: without memory for a snapshot it is staged without, with one warning") {
  Cuda cuda;
  if (Cuda::real()) return;
  const bool capped = GENERATE(true, false);
  InProcessJob job(1);
  Trainer trainer(cuda, 0);
  {
    auto o = options(job, trainer, true);
    if (capped) o.snapshot_max_bytes = kLarge;
    ms::Checkpointer ckpt(std::move(o));
    if (!capped) Cuda::fake().fail_function("cuMemAlloc", 1, 2);
    trainer.update(0);
    (void)ckpt.recover(trainer.state);
    for (std::uint64_t step = 1; step < 3; ++step)
      CHECK(trainer.stage(ckpt, step) == ms::Outcome::kComplete);
    CHECK(ckpt.stats().snapshots_refused == 1);
    CHECK(ckpt.stats().snapshot_bytes == 0);
    (void)ckpt.rejoin().recover(trainer.state);
    CHECK(trainer.has(2));
    ckpt.finish();
  }
  CHECK(times_in(job.log(), "no memory for a snapshot") == 1);
}

TEST_CASE("device job: a step that gets no slot lets go of its snapshot") {
  Cuda cuda;
  InProcessJob job(1);
  Trainer trainer(cuda, 0);
  auto o = options(job, trainer, true);
  ms::FaultyFileSystem faulty(*o.file_system);
  o.file_system = &faulty;
  ms::Checkpointer ckpt(std::move(o));
  trainer.update(0);
  (void)ckpt.recover(trainer.state);
  std::uint64_t step = 0;
  int without_slot = 0;
  for (std::uint64_t nth = 1; nth < 12; ++nth) {
    // So that slots must grow. stage() itself makes the first calls, and throws their error.
    const auto size = static_cast<std::int64_t>(nth) * 10 * kLarge;
    trainer.state.set("more", ms::Tensor::full<std::uint8_t>({size}, 0));
    faulty.fail_from(nth, ENOSPC);
    try {
      const auto outcome = stage_soon(ckpt, trainer.state, ++step).outcome().get(in_time());
      without_slot += outcome == ms::Outcome::kFailed ? 1 : 0;
    } catch (const ms::IoError&) {  // NOLINT(bugprone-empty-catch): no snapshot was taken
    }
    faulty.clear_faults();
    CHECK(trainer.stage(ckpt, ++step) == ms::Outcome::kComplete);
  }
  CHECK(without_slot > 0);
  ckpt.finish();
}

TEST_CASE("device job: a generation is left although the device hangs, and goes on afterwards") {
  Cuda cuda;
  if (Cuda::real()) return;
  const bool snapshot = GENERATE(false, true);
  InProcessJob job(1);
  const auto before = Cuda::fake().device_bytes();
  {
    Trainer trainer(cuda, 0);
    auto o = options(job, trainer, snapshot);
    o.deadline = std::chrono::milliseconds(2000);
    ms::Checkpointer ckpt(std::move(o));
    (void)ckpt.recover(trainer.state);
    REQUIRE(trainer.stage(ckpt, 1) == ms::Outcome::kComplete);
    {
      // State of its own, which is dropped while the device still reads it.
      auto once = std::make_unique<ms::Dict>(ms::Dict{{"large", cuda.tensor(kLarge, 8)},
                                                      {"odd", cuda.tensor(kOdd, 8, 3)},
                                                      {"small", cuda.tensor(kSmall, 8)},
                                                      {"host", tensor(trainer.state, "host")}});
      const auto bytes = Cuda::fake().device_bytes();
      Cuda::fake().hold(true);
      auto staging = ckpt.stage(*once, 2);
      staging.before_update(trainer.where());
      once.reset();
      ckpt.rejoin();
      // Told by the part that notices first.
      CHECK_THROWS_WITH(staging.staged().wait(in_time()), contains_text("generation was left"));
      CHECK(Cuda::fake().device_bytes() == bytes);
    }
    Cuda::fake().hold(false);
    CHECK(ckpt.recover(trainer.state).step == 1);
    CHECK(trainer.has(1));
    cuda.wait_until_nothing_is_kept();
    CHECK(trainer.stage(ckpt, 3) == ms::Outcome::kComplete);
    ckpt.finish();
  }
  cuda.wait_until_nothing_is_kept();
  CHECK(Cuda::fake().device_bytes() == before);
}

TEST_CASE(
    "device job: each call of the driver fails in turn; a step fails, and the next is whole") {
  Cuda cuda;
  if (Cuda::real()) return;
  const bool snapshot = GENERATE(false, true);
  std::size_t failures = 0;
  InProcessJob job(1);
  Trainer trainer(cuda, 0);
  ms::Checkpointer ckpt(options(job, trainer, snapshot));
  (void)ckpt.recover(trainer.state);
  std::uint64_t step = 0;
  for (std::uint64_t n = 1; n < 300; ++n) {
    INFO("call " << n);
    trainer.update(++step % 90);
    const auto before = Cuda::fake().calls(nullptr);
    bool whole = false;
    Cuda::fake().fail_call(n, 700);
    try {
      auto staging = ckpt.stage(trainer.state, step);
      staging.staged().wait(in_time());
      whole = staging.outcome().get(in_time()) == ms::Outcome::kComplete;
    } catch (const ms::RejoinNeeded&) {
      throw;
    } catch (const ms::Error& e) {
      CHECK_THAT(e.what(), contains_text("cu"));
    }
    Cuda::fake().fail_call(0, 0);
    failures += whole ? 0 : 1;
    const auto used = Cuda::fake().calls(nullptr) - before;
    cuda.wait_until_nothing_is_kept();
    ++step;
    trainer.update(step % 90);
    auto staging = stage_soon(ckpt, trainer.state, step);
    staging.staged().wait(in_time());
    REQUIRE(staging.outcome().get(in_time()) == ms::Outcome::kComplete);
    if (n % 10 == 0) {
      REQUIRE(ckpt.rejoin().recover(trainer.state).step == step);
      REQUIRE(trainer.has(step % 90));
    }
    if (whole && n > used) break;
  }
  CHECK(failures > 5);
  ckpt.finish();
}
