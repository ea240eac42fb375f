// Staging as a trainer with a Checkpointer has it: in the vault, with a replica elsewhere.
#include <sys/stat.h>

#include <barrier>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"
#include "tests/support/sanitized.hpp"
#include "tests/support/temp_directory.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::require;
using ms::test::run_ranks;

ms::Deadline in_time() { return ms::Deadline::after(std::chrono::seconds(20)); }

ms::Dict zeros() {
  return {{"a", ms::Tensor::zeros({9000}, ms::DType::kI32)},
          {"b", ms::Tensor::zeros({70}, ms::DType::kI32)}};
}

void fill(const ms::Dict& state, std::int32_t value) {
  for (const auto& [name, tensor] : state) {
    for (auto& element : tensor.as<ms::Tensor>().span<std::int32_t>()) element = value;
  }
}

bool holds_only(const ms::Value& state, std::int32_t value) {
  for (const auto* name : {"a", "b"}) {
    for (const auto element : state.at(name).as<ms::Tensor>().span<const std::int32_t>()) {
      if (element != value) return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE(
    "asynchronous: in a job, the source changes the moment it is staged, thousands of times") {
  constexpr std::int32_t kSteps = 3000;
  InProcessJob job(2);
  std::barrier everyone(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = 0;
    const std::int32_t sign = rank == 0 ? 1 : -1;
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = zeros();
    (void)ckpt.recover(state);
    for (std::int32_t step = 1; step <= kSteps; ++step) {
      fill(state, sign * step);
      auto staging = ckpt.stage(state, static_cast<std::uint64_t>(step));
      staging.staged().wait(in_time());
      fill(state, 1 << 30);
      require(staging.outcome().get(in_time()) == ms::Outcome::kComplete, "a step failed");
      if (step % 10 != 0) continue;
      // What the partner holds is what was staged, not what came after.
      const auto replica = ckpt.held(1 - rank);
      require(holds_only(replica.state, -sign * static_cast<std::int32_t>(replica.id.step)),
              "a replica has what was not staged");
    }
    everyone.arrive_and_wait();
    require(ckpt.rejoin().recover(state).step == kSteps, "another step");
    require(holds_only(state, sign * kSteps), "the own image has what was not staged");
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
}

TEST_CASE("caching: in a vault each slot's memory is used again, step after step") {
  const TempDirectory directory;
  InProcessJob job(1);
  auto o = job.options(0);
  o.file_system = nullptr;
  o.vault_directory = directory.path();
  o.directory = directory.path();
  o.persist_every = 0;
  ms::Checkpointer ckpt(std::move(o));
  ms::Dict state = zeros();
  (void)ckpt.recover(state);
  // Which file is it, and how large: its pages are what stays mapped.
  const auto files = [&] {
    std::map<std::string, std::pair<ino_t, off_t>> all;
    for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
      struct stat s{};
      if (::stat(entry.path().c_str(), &s) == 0 && S_ISREG(s.st_mode)) {
        all[entry.path().filename()] = {s.st_ino, s.st_size};
      }
    }
    return all;
  };
  std::map<std::string, std::pair<ino_t, off_t>> warm;
  for (std::int32_t step = 1; step <= 8; ++step) {
    fill(state, step);
    auto staging = ckpt.stage(state, static_cast<std::uint64_t>(step));
    CHECK(staging.outcome().get(in_time()) == ms::Outcome::kComplete);
    if (step == 2) warm = files();  // both slots are there
    if (step > 2) CHECK(files() == warm);
    fill(state, 0);
    CHECK(ckpt.rejoin().recover(state).step == static_cast<std::uint64_t>(step));
    CHECK(holds_only(state, step));
  }
  CHECK(warm.size() >= 2);
  ckpt.finish();
}

TEST_CASE("asynchronous: in a job, verify_source names the tensor and fails the step everywhere") {
  InProcessJob job(2);
  ms::test::Gate gate(true);
  std::vector<std::string> said(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.verify_source = true;
    if (rank == 1) o.pace = &gate;
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = zeros();
    (void)ckpt.recover(state);
    if (rank == 1) gate.close();
    auto staging = ckpt.stage(state, 1);
    if (rank == 1) {
      gate.wait_for_a_piece();
      state.at("b").as<ms::Tensor>().data<std::int32_t>()[69] = 1;  // too early
      gate.open();
    }
    try {
      staging.staged().wait(in_time());
    } catch (const ms::InvalidState& e) {
      said[static_cast<std::size_t>(rank)] = e.path() + ": " + e.what();
    }
    require(staging.outcome().get(in_time()) == ms::Outcome::kFailed, "a torn step is complete");
    // The next one is whole.
    fill(state, 7);
    auto next = ckpt.stage(state, 2);
    require(next.outcome().get(in_time()) == ms::Outcome::kComplete, "the next step failed");
    require(holds_only(ckpt.held(1 - rank).state, 7), "another state is held");
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
  CHECK(said[0] == "");
  CHECK_THAT(said[1], contains_text("b: ") && contains_text("b changed while it was being staged"));
}

TEST_CASE("budget: in a job, a pace is asked for every byte, and a slow one is left by a death") {
  InProcessJob job(2);
  ms::test::Gate closed(true);
  std::barrier recovered(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    if (rank == 0) o.pace = &closed;
    auto ckpt = std::make_unique<ms::Checkpointer>(std::move(o));
    ms::Dict state = zeros();
    (void)ckpt->recover(state);
    if (rank == 0) closed.close();
    const std::uint64_t before = closed.bytes();
    recovered.arrive_and_wait();
    auto staging = ckpt->stage(state, 1);
    if (rank == 1) {
      closed.wait_for_a_piece();
      job.fabric().kill(rank);
      return;
    }
    // Nothing is staged, and the loss ends the wait all the same.
    bool lost = false;
    try {
      (void)staging.outcome().get(in_time());
    } catch (const ms::PeerLost& e) {
      lost = e.rank() == 1;
    }
    require(lost, "no loss of rank 1");
    require(closed.bytes() - before < 9000 * 4 + 70 * 4, "copied through a closed gate");
  });
  for (const auto& error : errors) CHECK(error == "");
}

TEST_CASE("a step that failed elsewhere is over when its copy is: the next one is not left out") {
  InProcessJob job(2);
  ms::test::Gate closed(true);
  std::barrier recovered(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.when_busy = ms::WhenBusy::kSkip;
    if (rank == 0) o.pace = &closed;
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = zeros();
    (void)ckpt.recover(state);
    if (rank == 0) closed.close();
    recovered.arrive_and_wait();
    if (rank == 1) {  // cannot stage step 1, and votes no
      closed.wait_for_a_piece();
      ms::Dict cycle;
      cycle.set("itself", cycle);
      CHECK_THROWS_AS(ckpt.stage(cycle, 1), ms::InvalidArgument);
      cycle.set("itself", 0);  // it would own itself for ever
    } else {
      auto staging = ckpt.stage(state, 1);
      try {
        staging.outcome().wait(ms::Deadline::after(std::chrono::milliseconds(300)));
      } catch (const ms::Timeout&) {  // the copy still waits
      }
      if (!staging.outcome().ready()) closed.open();
      require(staging.outcome().get(in_time()) == ms::Outcome::kFailed, "step 1 is complete");
    }
    auto next = ckpt.stage(state, 2);
    closed.open();
    require(next.outcome().get(in_time()) == ms::Outcome::kComplete, "step 2 is not complete");
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
}

namespace {

/// Lets nothing be copied until `threads` threads ask to.
class Meeting final : public ms::Pace {
 public:
  explicit Meeting(std::size_t threads) : threads_(threads) {}
  void before(std::uint64_t, ms::Watermark&) override {
    std::unique_lock lock(mutex_);
    here_.insert(std::this_thread::get_id());
    changed_.notify_all();
    if (!changed_.wait_until(lock, in_time().time(), [&] { return here_.size() >= threads_; })) {
      ms::test::fail_test("copied by " + std::to_string(here_.size()) + " thread(s)");
    }
  }
  [[nodiscard]] std::size_t met() {
    const std::lock_guard lock(mutex_);
    return here_.size();
  }

 private:
  const std::size_t threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::thread::id> here_;
};

}  // namespace

TEST_CASE("in a job, a large state is copied by as many threads as were asked for") {
  InProcessJob job(1);
  Meeting meeting(3);
  auto o = job.options(0);
  o.persist_every = 0;
  o.block_bytes = std::uint64_t{1} << 20U;
  o.pace = &meeting;
  o.copy_threads = 3;
  ms::Checkpointer ckpt(std::move(o));
  constexpr std::int64_t kElements = std::int64_t{4} << 20;
  ms::Dict state{{"a", ms::Tensor::zeros({kElements}, ms::DType::kI32)},
                 {"b", ms::Tensor::zeros({70}, ms::DType::kI32)}};
  (void)ckpt.recover(state);  // stages step 0
  CHECK(meeting.met() == 3);
  fill(state, 5);
  REQUIRE(ckpt.stage(state, 1).outcome().get(in_time()) == ms::Outcome::kComplete);
  fill(state, 0);
  REQUIRE(ckpt.rejoin().recover(state).step == 1);
  CHECK(holds_only(state, 5));
  ckpt.finish();
}

TEST_CASE("files that Python's safetensors would refuse are said once, and read back") {
  if (ms::test::kSanitized) return;  // a header of 100 MB takes minutes there
  InProcessJob job(1);
  auto o = job.options(0);
  o.persist_every = 0;
  auto ckpt = std::make_unique<ms::Checkpointer>(std::move(o));
  constexpr int kTensors = 2000;
  ms::Dict state;
  for (int i = 0; i < kTensors; ++i) {
    state[std::string(30'000, 'n') + std::to_string(i)] = ms::Tensor::zeros({1}, ms::DType::kI32);
  }
  (void)ckpt->recover(state);                                   // stages step 0
  state["one more"] = ms::Tensor::zeros({1}, ms::DType::kI32);  // another header
  REQUIRE(ckpt->stage(state, 1).outcome().get(in_time()) == ms::Outcome::kComplete);
  REQUIRE(ckpt->rejoin().recover(state).step == 1);
  ckpt->finish();
  ckpt.reset();
  CHECK(times_in(job.log(), "Python's safetensors refuses headers above 100000000 bytes") == 1);
}
