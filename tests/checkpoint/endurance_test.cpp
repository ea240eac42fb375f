// Bytes that rot, and a long life: nothing wrong is ever restored, nothing is lost that has another
// copy, and nothing grows.
#include <atomic>
#include <barrier>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <meshstage/core/files/persisted.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/disk_contents.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/outcomes.hpp"
#include "tests/support/own_process.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/sanitized.hpp"
#include "tests/support/temp_directory.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_ranks;
using ms::test::Contents;
using ms::test::difference;
using ms::test::flip;
using ms::test::InProcessJob;
using ms::test::put_back;
using ms::test::read_all;
using ms::test::recover_fresh;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::state_of;
using ms::testing::count_descriptors;
using ms::testing::count_threads;

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
      ms::test::require_complete(staging);
      while (persist && ckpt.stats().persisted < step + 1) std::this_thread::yield();
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
    ms::test::require(different.empty(), different);
  });
  error = errors[0] + errors[1];
  if (steps[0] != steps[1]) error += "different steps";
  return steps[0];
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
  // Steps 0 and 2 went to slot 0, step 1 to slot 1.
  const auto newest = slots_of_rank_0(contents, "0");
  REQUIRE(newest.size() == 2);
  const std::uint64_t size = contents.at(newest[0]).size();
  int older = 0;
  for (std::uint64_t at = 0; at < size; at += 97) {
    INFO("byte " << at << " of " << size);
    std::string error;
    flip(job.disk(), newest[at % 2], at);
    CHECK(recovered_step(job, error) == 2);
    CHECK(error == "");
    put_back(job.disk(), "/vault", contents);
    for (const auto& path : newest) flip(job.disk(), path, at);
    const auto step = recovered_step(job, error);
    CHECK(error == "");
    CHECK((step == 1 || step == 2));  // 2: nothing of the image is there
    older += step == 1 ? 1 : 0;
    put_back(job.disk(), "/vault", contents);
  }
  CHECK(older > 20);
}

TEST_CASE("where no copy is whole the error of every rank names rank, step and tensor") {
  const bool files = GENERATE(false, true);
  InProcessJob job(2);
  stage_small(job, {1}, files);
  if (files) {
    job.wipe(0);
    job.wipe(1);
  }
  const char* const directory = files ? "/disk" : "/vault";
  // Nobody has step 0 any more, which would come back else.
  for (const auto& [path, bytes] : read_all(job.disk(), directory)) {
    const auto named = ms::parse_file_name(std::filesystem::path(path).filename().string());
    const bool old = files ? named && named->id.step == 0
                           : contains(path, "-r0-i1-own0") || contains(path, "-r1-i1-w0-0");
    if (old) job.disk().unlink(path);
  }
  const Contents contents = read_all(job.disk(), directory);
  auto copies = slots_of_rank_0(contents, "1");
  if (files) {
    for (const auto& [path, bytes] : contents) {
      if (contains(path, ".r00000of")) copies.push_back(path);
    }
  }
  REQUIRE(copies.size() == 2);
  const std::uint64_t size = contents.at(copies[0]).size();
  std::map<std::string, int> named;
  for (std::uint64_t at = 0; at < size; at += 61) {
    INFO("byte " << at << " of " << size);
    for (const auto& path : copies) flip(job.disk(), path, at);
    std::vector<std::string> said(2);
    std::barrier everyone(2);
    (void)run_ranks(all_ranks(2), [&](int rank) {
      {
        ms::Checkpointer ckpt(job.options(rank));
        ms::Dict state = state_of(rank, 9, kSmall);
        try {
          (void)ckpt.recover(state);
        } catch (const ms::Unrecoverable& e) {
          said[static_cast<std::size_t>(rank)] = e.what();
          if (e.rank() != 0) said[static_cast<std::size_t>(rank)] += "; another rank";
        }
        everyone.arrive_and_wait();
      }
    });
    CHECK(said[0] == said[1]);
    if (said[0].empty()) {  // a byte that means nothing: behind the image, or of what is not read
      ++named["nothing"];
    } else {
      CHECK_THAT(said[0], contains_text(files ? "generation 1, step 1 was complete"
                                              : "generation 1, step 0 was complete") &&
                              contains_text("missing in memory and on disk: rank 0") &&
                              contains_text("damaged: ") && !contains_text("another rank"));
      for (const char* tensor : {"model.weight", "model.bias"}) {
        named[tensor] += contains(said[0], tensor) ? 1 : 0;
      }
      // In memory and on disk, at its owner and at its holder.
      const auto first = said[0].find("damaged: ");
      CHECK(contains(said[0].substr(first), files ? ".own." : "rank 0's own image"));
      CHECK(
          contains(said[0].substr(first), files ? ".held-by-00001" : "rank 1's replica of rank 0"));
    }
    put_back(job.disk(), directory, contents);
    if (files) {
      job.wipe(0);
      job.wipe(1);
    }
  }
  CHECK(named["model.weight"] > 5);
  CHECK(named["model.bias"] > 5);
  CHECK(named["nothing"] < 70);
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
      put_back(job.disk(), "/disk", contents);
    }
  }
  CHECK(none > 20);
}

namespace {

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
  int threads[2] = {}, descriptors[2] = {};
  long kb[2] = {};
  const auto look = [&](int when) {
    threads[when] = count_threads();
    descriptors[when] = count_descriptors();
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
      ms::test::require(recover_to(ckpt.rejoin(), step).step == step, "another step");
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

TEST_CASE("beyond its slots a rank needs less than 64 MiB and 1 % of its image, whatever it does") {
  if (ms::test::kSanitized) return;  // whose own memory is larger
  // Two ranks of this process, on real files in memory: slots and files are not its own memory.
  constexpr std::int64_t kElements = std::int64_t{24} << 20U;
  constexpr long kImageKb = 2 * 4 * kElements / 1024;
  constexpr long kLimitKb = 2 * (64 * 1024 + kImageKb / 100);
  static_assert(kLimitKb < kImageKb, "one copy of one image too many would show");
  const TempDirectory directory("/dev/shm");
  InProcessJob job(2);
  std::atomic<long> most{0};
  const auto look = [&most] {
    const long now = status_kb("RssAnon");
    for (long seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
    }
  };
  std::vector<ms::Dict> states{state_of(0, 1, kElements), state_of(1, 1, kElements)};
  const long before = status_kb("RssAnon");
  const auto options = [&](int rank) {
    auto o = job.options(rank);
    o.file_system = nullptr;
    o.vault_directory = directory.path() / "vault";
    o.directory = directory.path() / "disk";
    o.block_bytes = 4U << 20U;
    o.persist_every = 1;
    o.observer = [&look](const ms::PointEvent&) { look(); };
    return o;
  };
  const auto wipe = [&](const char* where, const std::string& mark) {
    for (const auto& entry : std::filesystem::directory_iterator(directory.path() / where)) {
      if (contains(entry.path().filename(), mark)) std::filesystem::remove(entry.path());
    }
  };
  std::barrier everyone(2);
  int open_files[2] = {};
  const auto live = [&](std::uint64_t expected, std::vector<std::uint64_t> steps) {
    const auto errors = run_ranks(all_ranks(2), [&](int rank) {
      ms::Dict& state = states[static_cast<std::size_t>(rank)];
      ms::Checkpointer ckpt(options(rank));
      ms::test::require(ckpt.recover(state).step == expected, "another step");
      for (const auto step : steps) {
        auto staging = ckpt.stage(state, step);
        ms::test::require_complete(staging);
      }
      for (;;) {  // what goes to disk has arrived there
        const auto s = ckpt.stats();
        if (s.persisted + s.persist_failed == s.complete) break;
        std::this_thread::yield();
      }
      everyone.arrive_and_wait();
      if (steps.empty()) return;
      // No file stays open from one generation to the next.
      for (int& descriptors : open_files) {
        for (int i = 0; i < 3; ++i) {
          ms::test::require(ckpt.rejoin().recover(state).step == steps.back(), "another step");
        }
        everyone.arrive_and_wait();
        if (rank == 0) descriptors = count_descriptors();
        everyone.arrive_and_wait();
      }
    });
    for (const auto& error : errors) CHECK(error == "");
    CHECK(open_files[0] == open_files[1]);
  };
  live(0, {1, 2});
  wipe("vault", "-r1-i");  // a host is lost
  live(2, {3});
  wipe("vault", "");  // both
  live(3, {});
  CHECK(most > 0);
  INFO("own memory " << most - before << " kB, image " << kImageKb << " kB");
  CHECK(most - before < kLimitKb);
}
