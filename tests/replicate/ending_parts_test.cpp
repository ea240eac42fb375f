// The part `finisher`, which ends the job at a rank, and `lender`, alone.
#include <future>
#include <set>
#include <string>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/replicate/part_bench.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/store_keys.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using replicate::read_notes;
using test::FaultyRank;
using test::InProcessJob;
using test::PartBench;
using test::soon;

constexpr auto kGeneration = PartBench::kGeneration;

bool has_vault(InProcessJob& job, int rank) {
  const std::string mark = "-r" + std::to_string(rank) + "-i";
  for (const auto& name : job.disk().list("/vault")) {
    if (name.find(mark) != std::string::npos) return true;
  }
  return false;
}

std::uint64_t finished_in(InProcessJob& job) {
  return read_notes(*job.store(), InProcessJob::kName, soon()).finished;
}

}  // namespace

TEST_CASE("finisher: the vault goes when nothing uses its slots, then rank 0 notes the end") {
  InProcessJob job(2);
  const int rank = GENERATE(0, 1);
  PartBench bench(job.options(rank));
  REQUIRE(has_vault(job, rank));
  const SlotKey key{rank, 0};
  std::promise<void> behind;  // a removal that has begun
  bench.in_loop([&] {
    bench.slots.hold(key);
    bench.finisher.remove_vault();
    bench.slots.post([&] { behind.set_value(); });
  });
  behind.get_future().wait();
  CHECK(has_vault(job, rank));
  CHECK(finished_in(job) == 0);
  bench.in_loop([&] { bench.slots.release(key); });
  bench.engine.gate.wait_finished(soon());
  CHECK_FALSE(has_vault(job, rank));
  CHECK(finished_in(job) == (rank == 0 ? kGeneration : 0));
  // What ends from here on ends in order.
  bench.in_loop([&] { bench.losses.lost_link(1 - rank, LostReason::kEndOfFile, "end of file"); });
  CHECK(bench.nothing_fed());
}

TEST_CASE("finisher: a generation that was claimed since takes the images along") {
  InProcessJob job(1);
  PartBench bench(job.options(0));
  job.store()->set(test::generation_key(InProcessJob::kName, kGeneration, "end"), "superseded",
                   soon());
  bench.in_loop([&] { bench.finisher.remove_vault(); });
  bench.engine.gate.wait_finished(soon());
  CHECK(finished_in(job) == 0);
}

TEST_CASE("finisher: neither a Store that is gone nor a vault that stays fails finish()") {
  InProcessJob job(1);
  auto [options, disk] = FaultyRank(job.options(0));
  PartBench bench(options);
  const bool store = GENERATE(false, true);
  if (store) {
    bench.store->fail();
  } else {
    disk.fail(FileOperation::kUnlink, 1, EIO);
  }
  bench.in_loop([&] { bench.finisher.remove_vault(); });
  bench.engine.gate.wait_finished(soon());
  CHECK(bench.logs(store ? "the Store cannot note that the job has finished"
                         : "cannot remove the vault"));
}

TEST_CASE("finisher: a vault that goes after its generation was left is noted nowhere") {
  InProcessJob job(1);
  auto [options, disk] = FaultyRank(job.options(0));
  PartBench bench(options);
  disk.block(FileOperation::kUnlink);
  bench.in_loop([&] { bench.finisher.remove_vault(); });
  disk.wait_until_blocked();
  bench.leave();  // finish() gave up, and the trainer went on
  bench.enter(kGeneration + 1);
  disk.unblock();
  bench.wait_for_slots();
  CHECK(bench.nothing_fed());
  CHECK(finished_in(job) == 0);
}

TEST_CASE("lender: a borrower gets what the recovery chose, whichever is known first") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  const ImageId chosen{kGeneration, 3}, other{kGeneration, 2};
  const auto serve = [&] { bench.lender.serve({chosen, 0, 1}); };
  const auto want = [&](ImageId id) { bench.lender.want(1, {id, {}}); };
  SECTION("one of the two is nothing") {
    bench.in_loop(serve);
    CHECK(bench.nothing_fed());
  }
  SECTION("nor are both, if a generation lies between them") {
    const bool asked_first = GENERATE(false, true);
    bench.in_loop([&] {
      asked_first ? want(other) : serve();  // which would be refused
      bench.lender.leave();
      asked_first ? serve() : want(other);
    });
    CHECK(bench.nothing_fed());
  }
  SECTION("another step is refused") {
    const bool asked_first = GENERATE(false, true);
    bench.in_loop([&] {
      if (asked_first) want(other);
      serve();
      if (!asked_first) want(other);
    });
    const auto fed = bench.next();
    CHECK(fed.as<protocol::FetchFailed>().owner == 1);
    CHECK(fed.as<protocol::FetchFailed>().kind == ErrorKind::kCorruptData);
    CHECK_THAT(fed.as<protocol::FetchFailed>().why, contains_text("step 2"));
  }
  SECTION("a lender whose bytes differ is borrowed from no more") {
    bench.in_loop([&] { bench.lender.stop_borrowing({1, chosen}); });
    CHECK(bench.engine.gate.apart() == std::set<int>{1});
  }
}
