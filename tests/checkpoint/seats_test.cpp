// A job whose processes all end, and which comes back with its ranks on other hosts.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/seated_job.hpp"
#include "tests/support/temp_directory.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::run_ranks;
using ms::test::stage_all;

using ms::test::directory_of;
using ms::test::disk_of;
using ms::test::SeatedJob;
using ms::test::Seats;
const Seats kBefore{0, 0, 1, 1};

}  // namespace

TEST_CASE("a job that comes back with its ranks on other hosts goes on from its newest step") {
  const bool files = GENERATE(false, true);
  const auto after = GENERATE(Seats{1, 1, 0, 0},   // each one host further on
                              Seats{1, 0, 1, 0},   // two stay, two change places
                              Seats{0, 0, 1, 1},   // as before
                              Seats{1, 1, 2, 2});  // half of them on a host that has nothing
  SeatedJob job(4, files);
  job.live(kBefore, 0, {1, 2, 3});
  job.live(after, 3, {4, 5});
  // What the ranks of before left is gone, and each rank has its four slots where it sits now.
  for (int host = 0; host < 3; ++host) {
    std::set<int> sit;
    for (int rank = 0; rank < 4; ++rank) {
      if (after[static_cast<std::size_t>(rank)] == host) sit.insert(rank);
    }
    const bool reached = !sit.empty();
    for (int rank = 0; reached && rank < 4; ++rank) {
      const auto slots = job.files(host, "-r" + std::to_string(rank) + "-i");
      CHECK(slots.empty() == !sit.contains(rank));
    }
  }
  job.live(after, 5, {6}, true);
  for (int host = 0; host < 3; ++host) {
    const bool reached = std::find(after.begin(), after.end(), host) != after.end();
    for (const auto& name : job.files(host)) {
      if (reached) FAIL(directory_of(host) << "/" << name << " is left over");
    }
  }
}

TEST_CASE("after ranks changed their hosts the loss of either host is survived again") {
  const int lost = GENERATE(0, 1);
  SeatedJob job(4);
  job.live(kBefore, 0, {1, 2});
  job.live({1, 1, 0, 0}, 2, {});
  job.lose(lost);
  job.live({1, 1, 0, 0}, 2, {3});
}

TEST_CASE("one host alone brings the step back to ranks that sit there all") {
  const int left = GENERATE(0, 1);
  SeatedJob job(4);
  job.live(kBefore, 0, {1, 2});
  job.lose(1 - left);
  job.live(Seats(4, left), 2, {3}, true);
  CHECK(job.files(left).empty());
}

TEST_CASE("a start that ended before it had recovered leaves what it took to the next one") {
  SeatedJob job(4);
  job.live(kBefore, 0, {1, 2});
  for (const auto& seats : {Seats{1, 1, 0, 0}, Seats{1, 0, 1, 0}}) {
    all_good(run_ranks(all_ranks(4), [&](int rank) {
      const ms::Checkpointer ckpt(job.options(rank, seats[static_cast<std::size_t>(rank)]));
    }));
  }
  job.live({0, 1, 1, 0}, 2, {3}, true);
}

TEST_CASE("with the Store lost, too, what is staged on other hosts is newer than what was found") {
  SeatedJob job(2);
  job.live({0, 1}, 0, {1, 2});
  job.lose_store();
  job.live({1, 0}, 2, {3});
  job.live({0, 1}, 3, {4}, true);
}

TEST_CASE(
    "the vault of a rank that is stopped on the host that it left is read, and goes at last") {
  SeatedJob job(2);
  const auto store = std::make_shared<ms::test::HangingStore>(job.store());
  std::vector<std::unique_ptr<ms::Checkpointer>> hung(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto& ckpt = hung[static_cast<std::size_t>(rank)];
    auto options = job.options(rank, rank);
    options.store_object = store;
    ckpt = std::make_unique<ms::Checkpointer>(std::move(options));
    (void)recover_to(*ckpt, 0);
    stage_all(*ckpt, {1, 2});
  }));
  store->hang();  // what is stopped answers nobody who asks whether it lives
  job.live({1, 0}, 2, {3}, true);
  store->go_on();
  hung.clear();
  for (const int host : {0, 1}) CHECK(job.files(host).empty());
}

TEST_CASE("ranks that have no data connection connect for what the other one alone has") {
  // Rank r exchanges images with rank r + 2 alone. What rank 1 needs lies beside ranks 0 and 2.
  SeatedJob job(4);
  job.live({0, 1, 2, 3}, 0, {1, 2});
  job.live({1, 0, 3, 2}, 2, {3});
  job.live({0, 1, 2, 3}, 3, {4}, true);
  for (int host = 0; host < 4; ++host) CHECK(job.files(host).empty());
}

TEST_CASE("a step on disks of the hosts' own comes back to ranks that sit on other hosts") {
  const auto before = GENERATE(Seats{0, 0, 1, 1}, Seats{0, 1, 2, 3});
  const auto after = GENERATE(Seats{1, 1, 0, 0}, Seats{1, 0, 1, 0}, Seats{3, 0, 1, 2},
                              Seats{2, 3, 0, 1}, Seats{0, 0, 0, 0});
  const int hosts = *std::max_element(before.begin(), before.end()) + 1;
  const bool reached = hosts == 2 || std::set<int>(after.begin(), after.end()).size() > 1;
  if (!reached || hosts <= *std::max_element(after.begin(), after.end())) return;
  SeatedJob job(4, true, true);
  job.live(before, 0, {1});
  for (int host = 0; host < hosts; ++host) job.lose(host);  // all memory; the Store knows step 1
  job.live(after, 2, {3});
  for (int host = 0; host < hosts; ++host) job.lose(host);
  job.live(after, 4, {5}, true);
  // Where ranks sit, nothing is left but step 6; of each rank an image of its own, and a replica.
  for (int host = 0; host < hosts; ++host) {
    if (std::find(after.begin(), after.end(), host) == after.end()) continue;
    for (const auto& name : job.disk_files(host)) {
      INFO(disk_of(host) << "/" << name);
      CHECK(name.find(".s000000000006.") != std::string::npos);
    }
  }
}

TEST_CASE("the same over sockets and Gloo, on the real file system") {
  const TempDirectory temporary;
  const auto store = std::make_shared<ms::InMemoryStore>();
  const auto live = [&](const Seats& seats, std::uint64_t finds, std::uint64_t stages, bool end) {
    all_good(run_ranks(all_ranks(4), [&](int rank) {
      ms::CheckpointerOptions o;
      o.job = "seats";
      o.directory = temporary.path() / "disk";
      o.vault_directory = temporary.path() / std::to_string(seats[static_cast<std::size_t>(rank)]);
      o.deadline = std::chrono::seconds(20);
      o.forming_deadline = std::chrono::seconds(60);
      o.block_bytes = 4096;
      o.environment = ms::RankEnvironment{};
      o.environment->rank = rank;
      o.environment->world_size = 4;
      o.environment->local_rank = rank;
      o.environment->local_world_size = 4;
      o.store_object = store;
      o.log = [](const ms::LogLine&) {};
      ms::Checkpointer ckpt(std::move(o));
      (void)recover_to(ckpt, finds);
      stage_all(ckpt, {stages});
      if (end) ckpt.finish();
    }));
  };
  live({0, 1, 2, 3}, 0, 1, false);
  live({1, 0, 3, 2}, 1, 2, false);
  live({2, 3, 0, 1}, 2, 3, true);
  for (int host = 0; host < 4; ++host) {
    CHECK(std::filesystem::is_empty(temporary.path() / std::to_string(host)));
  }
}
