// Each part of the engine is held while the others go on: votes and deaths pass, whatever hangs,
// and no task of the loop computes or waits for longer than 10 ms.
#include <algorithm>
#include <array>
#include <barrier>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/replicate/engine_rank.hpp"
#include "tests/replicate/task_clock.hpp"
#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/meddling_transport.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using Clock = std::chrono::steady_clock;
using ms::Outcome;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::EngineRank;
using ms::test::HangingStore;
using ms::test::InProcessJob;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::TaskClock;
using std::chrono::milliseconds;

/// Who passes waits while it is closed.
class Door {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    waits_ = !open_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void set_open(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }
  void wait_until_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waits_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true, waits_ = false;
};

/// A job in which each part of rank 1 can be made to hang.
struct Job {
  explicit Job(int world_size) : ranks(world_size) {
    wire.payload = [this](int from, int, ms::test::Bytes&) {
      if (from == 1) sending.pass();
    };
    wire.before_receive = [this](int at, int, const std::string&) {
      if (at == 1) receiving.pass();
    };
  }
  InProcessJob ranks;
  ms::test::Meddler wire;
  Door sending, receiving, log;
};

/// One rank, and its seams.
struct Seams {
  Seams(Job& whole, int rank)
      : job(whole),
        options(job.ranks.options(rank)),
        store(std::make_shared<HangingStore>(job.ranks.store())),
        fs(*options.file_system) {
    options.deadline = std::chrono::seconds(2);
    options.store_object = store;
    options.file_system = &fs;
    options.pace = &pace;
    options.copy_threads = 2;
    options.transport = job.wire.wrap(options.transport);
    if (rank == 1) {
      options.log = [this, inner = options.log](const ms::LogLine& line) {
        job.log.pass();
        inner(line);
      };
    }
  }
  Seams(const Seams&) = delete;
  Seams& operator=(const Seams&) = delete;
  ~Seams() { go_on(); }  // also where the test fails: the engine's end waits for its parts
  EngineRank& start(TaskClock& clock) { return engine.emplace(options, std::ref(clock)); }
  void go_on() {
    store->go_on();
    fs.unblock();
    pace.open();
    for (Door* door : {&job.sending, &job.receiving, &job.log}) door->set_open(true);
  }
  Job& job;
  ms::CheckpointerOptions options;
  std::shared_ptr<HangingStore> store;
  ms::FaultyFileSystem fs;
  ms::test::Gate pace{true};
  std::optional<EngineRank> engine;
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
  bool everywhere = false;  ///< Every rank's hangs.
};

/// Each part hangs at rank 1, or everywhere, at the latest when the ranks stage a step.
std::vector<Part> all_parts() {
  using Op = ms::FileOperation;
  const auto nothing = [](Seams&) {};
  const auto on_disk = [](Op op) { return [op](Seams& s) { s.fs.block(op); }; };
  const auto disk_hangs = [](Seams& s) { s.fs.wait_until_blocked(); };
  const auto shut = [](Door Job::* door) {
    return [door](Seams& s) { (s.job.*door).set_open(false); };
  };
  const auto held = [](Door Job::* door) {
    return [door](Seams& s) { (s.job.*door).wait_until_held(); };
  };
  return {
      {"nothing", nothing, nothing},
      {"the Store", [](Seams& s) { s.store->hang(); }, nothing},
      {"every rank's Store", [](Seams& s) { s.store->hang(); }, nothing, true},
      {"a Store that is gone", [](Seams& s) { s.store->fail(); }, nothing, true},
      {"room in the vault", on_disk(Op::kReserve), disk_hangs},
      {"a new slot", on_disk(Op::kMap), disk_hangs},
      {"copying and digesting", [](Seams& s) { s.pace.close(); },
       [](Seams& s) { s.pace.wait_for_a_piece(); }},
      {"sending", shut(&Job::sending), held(&Job::sending)},
      {"receiving", shut(&Job::receiving), held(&Job::receiving)},
      {"the log",
       [](Seams& s) {
         s.job.log.set_open(false);
         s.job.wire.inject(0, 1, ms::test::Bytes(8, std::byte{0xff}));  // refused, with a line
       },
       held(&Job::log)},
  };
}

bool all_are_good(const std::vector<std::string>& errors) {
  all_good(errors);
  return std::all_of(errors.begin(), errors.end(), [](const auto& e) { return e.empty(); });
}

/// Runs `body`, which gives the slow tasks of a run (-1 if a rank threw), until a run had none; at
/// most three times. A part that keeps the loop waiting does so in each run. A thread that holds a
/// lock of a moment, and gets no processor, does not.
void check_quick(const std::function<int()>& body) {
  int slow = 1;
  for (int run = 0; run < 3 && slow > 0; ++run) slow = body();
  CHECK(slow == 0);
}

/// Rank 2's death, and when ranks 0 and 1 heard of it.
class Death {
 public:
  void happen(Job& job) {
    killed_.set_value(Clock::now());
    job.ranks.fabric().kill(2);
  }
  /// Runs what must throw the loss of rank 2. Returns what was wrong with that; "": nothing.
  std::string hear(int rank, const std::function<void()>& wait) {
    std::string wrong = "nobody was lost";
    try {
      wait();
    } catch (const ms::PeerLost& e) {
      wrong = e.rank() == 2 ? "" : e.what();
    }
    heard_[static_cast<std::size_t>(rank)] =
        std::chrono::duration_cast<milliseconds>(Clock::now() - death_.get());
    return wrong;
  }
  /// How many of them heard of it late.
  [[nodiscard]] int late() const {
    return static_cast<int>(std::count_if(heard_.begin(), heard_.end(),
                                          [](milliseconds m) { return m >= milliseconds(1000); }));
  }

 private:
  std::promise<Clock::time_point> killed_;
  const std::shared_future<Clock::time_point> death_ = killed_.get_future().share();
  std::array<milliseconds, 2> heard_{};
};

}  // namespace

TEST_CASE("whatever part of a rank hangs, every rank hears of a death") {
  for (const Part& part : all_parts()) {
    INFO(part.name);
    check_quick([&part] {
      Job job(3);
      std::barrier everyone(3);
      Death death;
      std::vector<TaskClock> clocks(3);
      const bool good = all_are_good(run_ranks(
          all_ranks(3), meeting(everyone, [&](int rank) {
            const auto me = static_cast<std::size_t>(rank);
            Seams seams(job, rank);
            EngineRank& engine = seams.start(clocks[me]);
            engine.recover_nothing();
            everyone.arrive_and_wait();
            if (rank == 1 || part.everywhere) part.hang(seams);
            if (rank == 2) {
              everyone.arrive_and_wait();
              everyone.arrive_and_wait();  // the part of rank 1 holds what rank 1 staged
              death.happen(job);
              everyone.arrive_and_wait();
              return;
            }
            everyone.arrive_and_wait();  // before what another rank stages reaches it
            auto staging = engine.stage(1);
            if (rank == 1) part.wait_until_held(seams);
            everyone.arrive_and_wait();
            const auto wrong =
                death.hear(rank, [&] { (void)staging.outcome().get(EngineRank::in_time()); });
            everyone.arrive_and_wait();
            seams.go_on();
            require(wrong.empty(), wrong);
          })));
      CHECK(clocks[1].tasks() > 0);
      return good ? clocks[0].slow() + clocks[1].slow() + death.late() : -1;
    });
  }
}

TEST_CASE("a vote passes a rank whose parts hang") {
  // Rank 3 is below rank 1 in the tree. Rank 0 passes the step by: rank 3 hears it from rank 1, of
  // which a part hangs.
  for (const Part& part : all_parts()) {
    INFO(part.name);
    check_quick([&part] {
      Job job(4);
      std::barrier everyone(4);
      std::promise<Clock::time_point> voted;
      const auto vote = voted.get_future().share();
      milliseconds heard{};
      std::vector<TaskClock> clocks(4);
      const bool good = all_are_good(
          run_ranks(all_ranks(4), meeting(everyone, [&](int rank) {
                      Seams seams(job, rank);
                      EngineRank& engine = seams.start(clocks[static_cast<std::size_t>(rank)]);
                      engine.recover_nothing();
                      everyone.arrive_and_wait();
                      if (rank == 1 || part.everywhere) part.hang(seams);
                      everyone.arrive_and_wait();  // before what another rank stages reaches it
                      ms::Staging staging;
                      if (rank != 0) staging = engine.stage(1);
                      if (rank == 1) part.wait_until_held(seams);
                      everyone.arrive_and_wait();
                      if (rank == 0) {
                        voted.set_value(Clock::now());
                        staging = engine.stage(2);
                      }
                      if (rank == 3) {
                        require(staging.outcome().get(EngineRank::in_time()) == Outcome::kFailed,
                                "the step is complete");
                        heard = std::chrono::duration_cast<milliseconds>(Clock::now() - vote.get());
                      }
                      everyone.arrive_and_wait();
                      seams.go_on();
                      if (rank == 1 || rank == 2) (void)staging.outcome().get();
                      everyone.arrive_and_wait();
                    })));
      CHECK(clocks[1].tasks() > 0);
      return good ? clocks[1].slow() + (heard < milliseconds(500) ? 0 : 1) : -1;
    });
  }
}

TEST_CASE("a rank whose disk hangs while it proves its files: every rank hears of a death") {
  using Op = ms::FileOperation;
  const auto [name, at] = GENERATE(table<std::string, Op>({
      {"listing the directory", Op::kList},
      {"opening a file", Op::kOpen},
      {"mapping a file", Op::kMap},
  }));
  INFO(name);
  check_quick([hangs_at = at] {
    Job job(3);
    std::barrier everyone(3);
    Death death;
    std::vector<TaskClock> before(3), clocks(3);
    const bool good =
        all_are_good(run_ranks(all_ranks(3), meeting(everyone, [&](int rank) {
                                 const auto me = static_cast<std::size_t>(rank);
                                 {  // A step that is on every rank's disk alone.
                                   Seams seams(job, rank);
                                   seams.options.persist_every = 1;
                                   EngineRank& engine = seams.start(before[me]);
                                   engine.recover_nothing();
                                   engine->finish();
                                   require(engine->stats().persisted == 1, "step 0 is not on disk");
                                 }
                                 everyone.arrive_and_wait();
                                 Seams seams(job, rank);
                                 if (rank == 1) {
                                   // Behind what starting reads, and before the first proof.
                                   seams.options.observer = [&](const ms::PointEvent& e) {
                                     if (e.point == ms::Point::kFormed) seams.fs.block(hangs_at);
                                   };
                                 }
                                 EngineRank& engine = seams.start(clocks[me]);
                                 everyone.arrive_and_wait();
                                 if (rank == 2) {
                                   everyone.arrive_and_wait();  // rank 1 hangs
                                   death.happen(job);
                                   everyone.arrive_and_wait();
                                   return;
                                 }
                                 if (rank == 1) seams.fs.wait_until_blocked();
                                 everyone.arrive_and_wait();
                                 const auto wrong = death.hear(rank, [&] {
                                   ms::Value state(ms::test::state_of(rank, 0));
                                   (void)engine->recover(state);
                                 });
                                 everyone.arrive_and_wait();
                                 seams.go_on();
                                 require(wrong.empty(), wrong);
                               })));
    CHECK(clocks[1].tasks() > 0);
    return good ? clocks[0].slow() + clocks[1].slow() + death.late() : -1;
  });
}

TEST_CASE("a disk that hangs costs the steps that need its slots, and nobody waits for it") {
  check_quick([] {
    Job job(2);
    std::barrier everyone(2);
    std::vector<std::vector<Outcome>> outcomes(2);
    std::vector<TaskClock> clocks(2);
    const bool good = all_are_good(
        run_ranks(all_ranks(2), meeting(everyone, [&](int rank) {
                    const auto me = static_cast<std::size_t>(rank);
                    Seams seams(job, rank);
                    seams.options.persist_every = 0;
                    EngineRank& engine = seams.start(clocks[me]);
                    engine->wish(false, true);  // step 0 goes to disk
                    engine.recover_nothing();
                    while (engine->stats().persisted == 0) std::this_thread::yield();
                    if (rank == 1) seams.fs.block(ms::FileOperation::kSync);
                    for (std::uint64_t step = 1; step <= 8; ++step) {
                      const auto begin = Clock::now();
                      if (step == 2) engine->wish(false, true);
                      outcomes[me].push_back(engine.stage_one(step));
                      require(Clock::now() - begin < seams.options.deadline,
                              "step " + std::to_string(step) + " kept the trainer waiting");
                      if (rank == 1 && step == 2) seams.fs.wait_until_blocked();
                    }
                    everyone.arrive_and_wait();
                    seams.go_on();
                    // Once the disk answers, steps are complete again.
                    for (std::uint64_t step = 9; engine->stats().complete == 4; ++step) {
                      (void)engine.stage_one(step);
                    }
                    engine->finish();
                  })));
    std::vector<Outcome> expected(8, Outcome::kFailed);
    expected[0] = expected[1] = expected[2] = Outcome::kComplete;
    CHECK(outcomes[0] == expected);
    CHECK(outcomes[1] == expected);
    CHECK_THAT(job.ranks.log(), contains_text("has been written to disk for"));
    CHECK_THAT(job.ranks.log(), contains_text("rank 1 voted no"));
    return good ? clocks[0].slow() + clocks[1].slow() : -1;
  });
}

TEST_CASE("the clock of these tests sees a loop that waits, and one that computes") {
  for (const bool computes : {false, true}) {
    INFO((computes ? "computes" : "waits"));
    Job job(2);
    std::vector<TaskClock> clocks(2);
    all_good(run_ranks(all_ranks(2), [&](int rank) {
      Seams seams(job, rank);
      if (rank == 0) {
        seams.options.observer = [computes](const ms::PointEvent& e) {
          if (e.point != ms::Point::kVoted || e.id.step != 1) return;
          constexpr auto kLong = 3 * TaskClock::kSlow;
          if (!computes) return std::this_thread::sleep_for(kLong);  // what is to be seen
          const auto begin = TaskClock::of_clock(CLOCK_THREAD_CPUTIME_ID);
          while (TaskClock::of_clock(CLOCK_THREAD_CPUTIME_ID) - begin < kLong) continue;
        };
      }
      EngineRank& engine = seams.start(clocks[static_cast<std::size_t>(rank)]);
      engine.recover_nothing();
      (void)engine.stage_one(1);
      engine->finish();
    }));
    CHECK(clocks[0].slow() >= 1);
  }
}

TEST_CASE("a trainer whose own engine hangs is told so, and not kept") {
  InProcessJob job(1);
  auto options = job.options(0);
  options.deadline = milliseconds(200);
  Door door;
  EngineRank rank(options, [&door](bool begins) {
    if (begins) door.pass();
  });
  rank.recover_nothing();
  door.set_open(false);
  std::string why;
  try {
    (void)rank.stage(1);
  } catch (const ms::InvalidState& e) {
    why = e.what();
  }
  door.set_open(true);
  CHECK_THAT(why, Catch::Matchers::Contains("the engine of rank 0 has done nothing for 200 ms"));
}
