// A start of a job beside another one: refused where the other is healthy, let in where it hangs.
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using namespace std::chrono_literals;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;

using Ranks = std::vector<std::unique_ptr<ms::Checkpointer>>;
using Change = std::function<void(ms::CheckpointerOptions&)>;

constexpr std::chrono::milliseconds kNever = std::chrono::milliseconds::max();

/// Ranks whose trainers go on working: each stages a step after the other until the test is over.
class Job {
 public:
  Job(InProcessJob& job, const Change& change, std::uint64_t finds = 0)
      : ranks_(static_cast<std::size_t>(job.world_size())) {
    for (int rank = 0; rank < job.world_size(); ++rank) {
      auto options = job.options(rank, fabric_);
      options.deadline = 20s;
      change(options);
      options_.push_back(std::move(options));
    }
    all_good(run_ranks(all_ranks(job.world_size()), [&](int rank) {
      auto& ckpt = ranks_[static_cast<std::size_t>(rank)];
      ckpt = std::make_unique<ms::Checkpointer>(options_[static_cast<std::size_t>(rank)]);
      (void)recover_to(*ckpt, finds);
      stage_all(*ckpt, {finds + 1});
    }));
    step_ = finds + 1;
  }
  /// Stages on all ranks while `other` runs; what each threw.
  std::vector<std::string> train_during(const std::function<void()>& other) {
    std::atomic<bool> over = false;
    std::thread beside([&] {
      other();
      over = true;
    });
    std::atomic<std::uint64_t> last = ~std::uint64_t{0};
    auto errors = run_ranks(all_ranks(static_cast<int>(ranks_.size())), [&](int rank) {
      for (std::uint64_t step = step_ + 1; step <= last; ++step) {
        std::this_thread::sleep_for(1ms);  // it trains
        stage_all(*ranks_[static_cast<std::size_t>(rank)], {step});
        if (rank == 0 && over && last > step + 1)
          last = step + 1;  // the others may be one ahead, and no more
      }
    });
    beside.join();
    step_ = last;
    return errors;
  }
  [[nodiscard]] ms::Checkpointer& rank(int rank) { return *ranks_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] std::uint64_t step() const { return step_; }

 private:
  ms::InProcessFabric fabric_;
  std::vector<ms::CheckpointerOptions> options_;
  Ranks ranks_;
  std::uint64_t step_ = 0;
};

Change named(const std::string& launch) {
  return [launch](ms::CheckpointerOptions& o) { o.environment->launch = launch; };
}

/// Another start, with links of its own: on one fabric a new process of a rank would cut off the
/// one before.
std::vector<std::string> start(InProcessJob& job, const std::vector<int>& ranks,
                               const Change& change) {
  ms::InProcessFabric fabric;
  return run_ranks(ranks, [&](int rank) {
    auto options = job.options(rank, fabric);
    options.deadline = 20s;
    options.forming_deadline = 60s;
    change(options);
    const ms::Checkpointer ckpt(std::move(options));
  });
}

}  // namespace

TEST_CASE("a start beside a healthy job is refused, and the job does not notice") {
  const std::string first = GENERATE("", "one");
  const std::string second = GENERATE("", "two");
  InProcessJob job(2);
  Job running(job, named(first));
  std::vector<std::string> refused;
  all_good(running.train_during([&] { refused = start(job, {0, 1}, named(second)); }));
  for (const auto& error : refused) {
    CHECK_THAT(error, contains_text("job in-process is running: all 2 ranks of"));
    CHECK_THAT(error, contains_text("touched nothing"));
    CHECK_THAT(error, contains_text(" since 2"));
  }
  for (const auto& name : job.disk().list("/vault")) CHECK(name.find("-i2") == std::string::npos);
}

TEST_CASE("so is a start with another number of ranks, and one that sits elsewhere") {
  const int ranks = GENERATE(1, 2, 3);
  const bool elsewhere = ranks == 2 || GENERATE(false, true);
  CAPTURE(ranks, elsewhere);
  InProcessJob job(2);
  const Change any_number = [](ms::CheckpointerOptions& o) { o.any_world.emplace(); };
  Job running(job, any_number);
  std::vector<std::string> refused;
  all_good(running.train_during([&] {
    refused = start(job, all_ranks(ranks), [&](ms::CheckpointerOptions& o) {
      any_number(o);
      o.environment->launch = "two";
      o.environment->world_size = o.environment->local_world_size = ranks;
      if (elsewhere) o.vault_directory = "/elsewhere";
    });
  }));
  for (const auto& error : refused) {
    CHECK_THAT(error, contains_text("job in-process is running: all 2 ranks of"));
    CHECK_THAT(error, contains_text("touched nothing"));
  }
  CHECK_THROWS_AS(job.disk().list("/elsewhere"), ms::IoError);  // nobody has made it
  for (const auto& name : job.disk().list("/vault")) {  // the job may have made slots meanwhile
    CHECK(name.find("-i2") == std::string::npos);
    CHECK(name.find("-r2") == std::string::npos);
  }
}

TEST_CASE("a job whose deadlines are milliseconds::max() waits for ever, and refuses a start") {
  InProcessJob job(2);
  Job running(job, [](ms::CheckpointerOptions& o) { o.deadline = o.forming_deadline = kNever; });
  all_good(run_ranks(all_ranks(2),
                     [&](int rank) { ms::collectives::barrier(*running.rank(rank).group()); }));
  std::vector<std::string> refused;
  all_good(running.train_during([&] {
    refused = start(job, {0, 1}, [](ms::CheckpointerOptions& o) {
      o.environment->launch = "two";
      o.deadline = kNever;
    });
  }));
  for (const auto& error : refused) {
    CHECK_THAT(error, contains_text("job in-process is running: all 2 ranks of"));
  }
}

TEST_CASE("one rank that is started twice beside a healthy job is refused") {
  InProcessJob job(2);
  Job running(job, named(""));
  std::vector<std::string> refused;
  all_good(running.train_during([&] { refused = start(job, {1}, named("")); }));
  CHECK_THAT(refused[0], contains_text("is running"));
}

TEST_CASE("with take_over a start takes the job, and every call of the ranks of before says so") {
  InProcessJob job(2);
  Job running(job, named("one"));
  const std::uint64_t step = running.step();
  const Job second(
      job,
      [](ms::CheckpointerOptions& o) {
        o.environment->launch = "two";
        o.take_over = true;
      },
      step);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer& ckpt = running.rank(rank);
    const auto fenced = [&](const std::string& call, const std::function<void()>& body) {
      try {
        body();
      } catch (const ms::Fenced&) {
        return;
      } catch (const ms::Error& e) {
        ms::test::fail_test(call + " says: " + e.what());
      }
      ms::test::fail_test(call + " was not fenced");
    };
    // By its vault or by the Store, whichever says so first; or the other rank was, and rejoin()
    // says so of this one.
    fenced("the next step", [&] {
      try {
        stage_all(ckpt, {step + 1});
      } catch (const ms::RejoinNeeded&) {
        ckpt.rejoin();
      }
    });
    fenced("rejoin()", [&] { ckpt.rejoin(); });
    // At once: none of them asks anybody.
    const auto began = ms::Deadline::Clock::now();
    ms::Dict state = ms::test::state_of(rank, 0);
    fenced("stage()", [&] { (void)ckpt.stage(state, step + 2); });
    fenced("recover()", [&] { (void)ckpt.recover(state); });
    fenced("group()", [&] { (void)ckpt.group(); });
    fenced("held()", [&] { (void)ckpt.held(1 - rank); });
    fenced("rejoin() again", [&] { ckpt.rejoin(); });
    fenced("finish()", [&] { ckpt.finish(); });
    ms::test::require(ms::Deadline::Clock::now() - began <= 15s, "not at once");
  }));
}

TEST_CASE("a rank whose vault was taken by a start that meets elsewhere is fenced, too") {
  InProcessJob job(1);
  Job running(job, named("one"));
  const auto elsewhere = std::make_shared<ms::InMemoryStore>();
  const Job other(
      job, [&](ms::CheckpointerOptions& o) { o.store_object = elsewhere; }, running.step());
  const auto errors = run_ranks({0}, [&](int rank) {
    ms::Checkpointer& ckpt = running.rank(rank);
    try {
      stage_all(ckpt, {running.step() + 1});
    } catch (const ms::InvalidState&) {
    }
    stage_all(ckpt, {running.step() + 2});
  });
  CHECK_THAT(errors[0], contains_text("fenced: "));
}

TEST_CASE("a job of other ranks that died while it formed does not keep a start out") {
  InProcessJob four(4);
  const auto errors = run_ranks({0, 1}, [&](int rank) {
    auto options = four.options(rank);
    options.forming_deadline = 2s;
    const ms::Checkpointer ckpt(std::move(options));
  });
  for (const auto& error : errors) CHECK_THAT(error, contains_text("did not come"));
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    auto options = four.options(rank);
    options.deadline = 20s;
    options.environment->world_size = options.environment->local_world_size = 3;
    ms::Checkpointer ckpt(std::move(options));
    (void)recover_to(ckpt, 0);
  }));
}
