// Staging as a trainer with a Checkpointer has it: in the vault, with a replica elsewhere.
#include <sys/stat.h>

#include <barrier>
#include <map>

#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/rank_errors.hpp"
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
