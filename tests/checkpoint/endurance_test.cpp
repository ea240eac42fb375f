// Bytes that rot, system calls that fail, and a long life: nothing wrong is ever restored, nothing
// is lost that has another copy, and nothing grows.
#include <barrier>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/sanitized.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_ranks;
using ms::test::difference;
using ms::test::InProcessJob;
using ms::test::recover_fresh;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::state_of;
using Contents = std::map<std::string, std::vector<std::byte>>;

constexpr std::int64_t kSmall = 100;  // elements

/// Stages `steps` of small states on two ranks; what goes to disk has arrived there.
void stage_small(InProcessJob& job, const std::vector<std::uint64_t>& steps, bool persist) {
  std::barrier everyone(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = persist ? 1 : 0;
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_of(rank, 0, kSmall);
    (void)ckpt.recover(state);
    for (const auto step : steps) {
      auto staging = ckpt.stage(state_of(rank, step, kSmall), step);
      if (staging.outcome().get() != ms::Outcome::kComplete) throw ms::InvalidState("failed");
      while (persist && ckpt.stats().persisted < step) std::this_thread::yield();
    }
    everyone.arrive_and_wait();
  });
  for (const auto& error : errors) REQUIRE(error == "");
}

/// What both ranks recover: the step, 0 if neither can; anything but the right bytes is an error.
std::uint64_t recovered_step(InProcessJob& job, std::string& error) {
  std::vector<std::uint64_t> steps(2);
  std::barrier everyone(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    ms::Dict state = state_of(rank, 9, kSmall);
    std::uint64_t step = 0;
    std::string different;
    try {
      step = ckpt.recover(state).step;
      different = difference(state, state_of(rank, step, kSmall));
    } catch (const ms::Unrecoverable&) {
      different = difference(state, state_of(rank, 9, kSmall));
    }
    steps[static_cast<std::size_t>(rank)] = step;
    everyone.arrive_and_wait();
    if (!different.empty()) throw ms::InvalidState(different);
  });
  error = errors[0] + errors[1];
  if (steps[0] != steps[1]) error += "different steps";
  return steps[0];
}

Contents read_all(ms::MemoryFileSystem& disk, const std::string& directory) {
  Contents contents;
  for (const auto& name : disk.list(directory)) {
    const auto file = disk.open(directory + "/" + name, ms::OpenMode::kRead);
    std::vector<std::byte> bytes(file->stat().size);
    (void)file->read_at(bytes, 0);
    contents[directory + "/" + name] = std::move(bytes);
  }
  return contents;
}

void write_back(ms::MemoryFileSystem& disk, const Contents& contents) {
  for (const auto& [path, bytes] : contents) {
    const auto file = disk.open(path, ms::OpenMode::kReadWrite);
    ms::write_fully(*file, bytes, 0);
  }
}

void flip(ms::MemoryFileSystem& disk, const std::string& path, std::uint64_t at) {
  const auto file = disk.open(path, ms::OpenMode::kReadWrite);
  std::byte b{};
  (void)file->read_at(std::span(&b, 1), at);
  b ^= std::byte{0x20};
  ms::write_fully(*file, std::span(&b, 1), at);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// The files whose image is of that step, of rank 0, in memory: own slot and replica.
std::vector<std::string> slots_of_rank_0(const Contents& contents, const std::string& index) {
  std::vector<std::string> paths;
  for (const auto& [path, bytes] : contents) {
    if (contains(path, "-r0-i1-own" + index) || contains(path, "-r1-i1-w0-" + index)) {
      paths.push_back(path);
    }
  }
  return paths;
}

}  // namespace

TEST_CASE("a byte flipped anywhere in a slot: the other copy, or the step before, comes back") {
  InProcessJob job(2);
  stage_small(job, {1, 2}, false);
  const Contents contents = read_all(job.disk(), "/vault");
  // Step 1 went to slot 0, step 2 to slot 1.
  const auto newest = slots_of_rank_0(contents, "1");
  REQUIRE(newest.size() == 2);
  const std::uint64_t size = contents.at(newest[0]).size();
  int older = 0;
  for (std::uint64_t at = 0; at < size; at += 97) {
    INFO("byte " << at << " of " << size);
    std::string error;
    flip(job.disk(), newest[at % 2], at);
    CHECK(recovered_step(job, error) == 2);
    CHECK(error == "");
    write_back(job.disk(), contents);
    for (const auto& path : newest) flip(job.disk(), path, at);
    const auto step = recovered_step(job, error);
    CHECK(error == "");
    CHECK((step == 1 || step == 2));  // 2: nothing of the image is there
    older += step == 1 ? 1 : 0;
    write_back(job.disk(), contents);
  }
  CHECK(older > 20);
}

TEST_CASE("a byte flipped anywhere in a file: the replica's file, or no step, never another") {
  InProcessJob job(2);
  stage_small(job, {1, 2}, true);
  job.wipe(0);
  job.wipe(1);
  const Contents contents = read_all(job.disk(), "/disk");
  std::vector<std::string> files;
  for (const auto& [path, bytes] : contents) {
    if (contains(path, ".r00000of") && contains(path, "s000000000002")) files.push_back(path);
  }
  REQUIRE(files.size() == 2);
  const std::uint64_t size = contents.at(files[0]).size();
  int none = 0;
  for (std::uint64_t at = 0; at < size; at += 89) {
    INFO("byte " << at << " of " << size);
    for (const std::size_t damaged : {1U, 2U}) {
      std::string error;
      for (std::size_t i = 0; i < damaged; ++i) flip(job.disk(), files[(at + i) % 2], at);
      const auto step = recovered_step(job, error);
      CHECK(error == "");
      if (damaged == 1) {
        CHECK(step == 2);
      } else {
        CHECK(step != 2);
        ++none;
      }
      job.wipe(0);
      job.wipe(1);
      write_back(job.disk(), contents);
    }
  }
  CHECK(none > 20);
}

TEST_CASE("each system call of a step fails in turn: an error, and the next step is whole again") {
  const int error = GENERATE(EIO, ENOSPC, EACCES, EMFILE);
  InProcessJob job(1);
  auto o = job.options(0);
  o.persist_every = 1;
  ms::FaultyFileSystem faulty(*o.file_system);
  o.file_system = &faulty;
  {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    const auto settle = [&] {
      for (;;) {
        const auto s = ckpt.stats();
        if (s.persisted + s.persist_failed == s.complete) return s;
        std::this_thread::yield();
      }
    };
    std::uint64_t step = 1;
    int fired = 0;
    for (std::uint64_t nth = 1;; ++nth) {
      INFO("call " << nth << ", errno " << error);
      (void)settle();
      faulty.fail_any(nth, error);
      ++step;
      // The state grows, so that slots do.
      const auto elements = 5000 + static_cast<std::int64_t>(step) * 1500;
      try {
        auto staging = ckpt.stage(state_of(0, step, elements), step);
        (void)staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20)));
      } catch (const ms::Error& e) {
        CHECK_THAT(std::string(e.what()), contains_text("errno"));
      }
      const auto before = settle();
      const bool hit = faulty.fired().has_value();
      faulty.clear_faults();
      if (!hit) break;
      ++fired;
      stage_all(ckpt, {++step});
      CHECK(settle().persisted == before.persisted + 1);
    }
    CHECK(fired > 10);
  }
  faulty.clear_faults();
}

namespace {

std::size_t entries(const char* directory) {
  std::size_t n = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    (void)entry;
    ++n;
  }
  return n;
}

/// Kilobytes of that line of /proc/self/status.
long status_kb(const std::string& name) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::stol(line.substr(name.size() + 1));
  }
  return -1;
}

}  // namespace

TEST_CASE("500 stages and 100 generations in one process: memory, threads, descriptors are flat") {
  InProcessJob job(2);
  std::barrier everyone(2);
  std::size_t threads[2] = {}, descriptors[2] = {};
  long kb[2] = {};
  const auto look = [&](int when) {
    threads[when] = entries("/proc/self/task");
    descriptors[when] = entries("/proc/self/fd");
    kb[when] = status_kb("VmRSS");
  };
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = 50;
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_fresh(ckpt);
    std::uint64_t step = 0;
    for (int generation = 0; generation < 100; ++generation) {
      for (int i = 0; i < 5; ++i) stage_all(ckpt, {++step});
      everyone.arrive_and_wait();
      if (rank == 0 && generation == 20) look(0);
      if (rank == 0 && generation == 99) look(1);
      everyone.arrive_and_wait();
      if (recover_to(ckpt.rejoin(), step).step != step) throw ms::InvalidState("step");
    }
    everyone.arrive_and_wait();
    ckpt.finish();
  });
  for (const auto& error : errors) CHECK(error == "");
  CHECK(threads[1] == threads[0]);
  CHECK(descriptors[1] == descriptors[0]);
  if (ms::test::kSanitized) return;  // which keeps what was freed
  CHECK(kb[1] < kb[0] + 16 * 1024);
  CHECK(kb[1] < 64 * 1024 * 2);  // two ranks, and their vaults of a few hundred kilobytes
}
