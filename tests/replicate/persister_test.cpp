// The part `persister` alone: complete steps that go to disk, on disks that fail or hang.
#include <algorithm>
#include <string>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/replicate/part_bench.hpp"
#include "tests/replicate/part_images.hpp"
#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using protocol::Persisted;
using test::FaultyRank;
using test::InProcessJob;
using test::PartBench;
using test::soon;
using test::TestImage;

constexpr auto kGeneration = PartBench::kGeneration;
std::vector<SlotKey> slots_of(int index) { return {{0, index}, {1, index}}; }

ImageId step(std::uint64_t number) { return {kGeneration, number}; }

/// Rank 0 of 2, which holds rank 1's replica. Steps alternate between the slots.
class DiskBench : public PartBench {
 public:
  using PartBench::PartBench;
  /// The step is complete in memory.
  void complete(std::uint64_t number) {
    const int index = static_cast<int>(number % 2);
    for (const int owner : {0, 1}) {
      test::seal_in(engine.vault, {owner, index}, test::image_of_step(owner, 2, step(number)));
    }
    note_sealed(number);
  }
  void note_sealed(std::uint64_t number) {
    in_loop([&] {
      const protocol::Slot sealed{protocol::Slot::State::kSealed, step(number), kNoImage};
      engine.state.own[number % 2] = sealed;
      engine.state.held.at(0)[number % 2] = sealed;
      engine.state.base = step(number);
    });
  }
  Work<DiskOutcome> persist(std::uint64_t number) {
    Promise<DiskOutcome> outcome;
    auto work = outcome.work();
    in_loop([&] { persister.persist(step(number), std::move(outcome)); });
    return work;
  }
  bool finishes() {
    Promise<bool> done;
    auto work = done.work();
    in_loop([&] { persister.persist_newest(std::move(done)); });
    return work.get(soon());
  }
  void all_on_disk(std::uint64_t number) {
    in_loop([&] { persister.all_on_disk(step(number)); });
  }
  bool in_use(std::uint64_t number) {
    bool any = false;
    in_loop([&] {
      for (const SlotKey key : slots_of(static_cast<int>(number % 2))) any |= slots.in_use(key);
    });
    return any;
  }
  /// Waits until finish() would wait for the disk no more.
  void wait_for_disk() {
    engine.gate.recovered();
    (void)engine.gate.wait_idle({20s, [](std::uint32_t) {}});
  }
};

/// The steps of the files in /disk, each with its owners.
std::vector<std::pair<std::uint64_t, int>> files_in(InProcessJob& job) {
  std::vector<std::pair<std::uint64_t, int>> found;
  for (const auto& file : list_images(job.disk(), "/disk", InProcessJob::kName)) {
    found.emplace_back(file.name.id.step, file.name.rank);
  }
  return found;
}
using Files = std::vector<std::pair<std::uint64_t, int>>;

}  // namespace

TEST_CASE("persister: a step is on disk, and its slots are held until it is") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  DiskBench bench(options);
  bench.at_end.emplace_back([&] { disk.unblock(); });
  bench.complete(4);
  disk.block(FileOperation::kRename);
  auto outcome = bench.persist(4);
  disk.wait_until_blocked();
  CHECK(bench.in_use(4));
  CHECK(bench.nothing_fed());
  disk.unblock();
  CHECK(bench.next().as<Persisted>().id == step(4));
  CHECK_FALSE(bench.in_use(4));
  CHECK(files_in(job) == Files{{4, 0}, {4, 1}});
  CHECK_FALSE(outcome.ready());  // another rank may fail still
  bench.all_on_disk(4);
  CHECK(outcome.get(soon()) == DiskOutcome::kEverywhere);
  bench.wait_for_disk();
  CHECK(bench.engine.gate.stats().persisted == 1);
  CHECK(bench.engine.gate.stats().disk_step == 4);
}

TEST_CASE("persister: a step that cannot be written stays in memory, and the next one is written") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  DiskBench bench(options);
  bench.complete(4);
  // One file is whole, and the step is not on disk all the same.
  const auto fault =
      GENERATE(FileOperation::kWriteAt, FileOperation::kSync, FileOperation::kRename);
  disk.fail(fault, fault == FileOperation::kRename ? 2 : 1, ENOSPC);
  CAPTURE(to_string(fault));
  auto outcome = bench.persist(4);
  CHECK(outcome.get(soon()) == DiskOutcome::kFailed);
  CHECK(bench.logs("step 4 is complete in memory but not on disk"));
  bench.wait_for_disk();
  CHECK(bench.nothing_fed());
  CHECK_FALSE(bench.in_use(4));
  CHECK(bench.engine.gate.stats().persist_failed == 1);
  CHECK(files_in(job).size() == 1);

  bench.complete(5);
  (void)bench.persist(5);
  CHECK(bench.next().as<Persisted>().id == step(5));
}

TEST_CASE("persister: a slot that rots meanwhile, or is gone, does not reach the disk") {
  InProcessJob job(2);
  DiskBench bench(job.options(0));
  if (GENERATE(false, true)) {
    auto rotten = test::image_of_step(0, 2, step(4));
    rotten.bytes()[rotten.info.manifest_bytes + 5] ^= std::byte{1};
    test::seal_in(bench.engine.vault, {0, 0}, rotten);
  }
  test::seal_in(bench.engine.vault, {1, 0}, test::image_of_step(1, 2, step(4)));
  bench.note_sealed(4);
  CHECK(bench.persist(4).get(soon()) == DiskOutcome::kFailed);
  CHECK(files_in(job) == Files{{4, 1}});
  bench.wait_for_disk();
  CHECK(bench.nothing_fed());
}

TEST_CASE("persister: a replica that borrows gets no file, and the step is on disk without it") {
  InProcessJob job(4);
  auto options = job.options(0);
  options.job = "job";  // as that image's
  DiskBench bench(options);
  const auto borrowing = test::borrowing_image();  // of rank 2, which is the ward
  test::seal_in(bench.engine.vault, {2, 1}, borrowing.info, test::replica_of(borrowing).bytes());
  const ImageId id = borrowing.info.identity.id;
  bench.in_loop([&] {
    bench.engine.state.held.at(0)[1] = {protocol::Slot::State::kSealed, id, kNoImage};
    bench.persister.persist(id);
  });
  CHECK(bench.next().as<Persisted>().id == id);
  CHECK(list_images(job.disk(), "/disk", "job").empty());
}

TEST_CASE("persister: what hangs when a generation ends holds its slots, and is no later one's") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  DiskBench bench(options);
  bench.at_end.emplace_back([&] { disk.unblock(); });
  bench.complete(4);
  disk.block(FileOperation::kSync);
  auto outcome = bench.persist(4);
  disk.wait_until_blocked();
  bench.in_loop([&] { bench.persister.lose(std::make_exception_ptr(PeerLost("rank 1 died"))); });
  CHECK_THROWS_AS(outcome.get(soon()), PeerLost);
  bench.leave();
  bench.enter(kGeneration + 1);
  CHECK(bench.in_use(4));
  disk.unblock();
  bench.wait_for_disk();
  CHECK(bench.nothing_fed());
  CHECK_FALSE(bench.in_use(4));
  CHECK(files_in(job) == Files{{4, 0}, {4, 1}});
  CHECK(bench.finishes());  // it is there: nothing is written
  CHECK(bench.nothing_fed());
}

TEST_CASE("persister: at the end the newest step is written unless it is there") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  DiskBench bench(options);
  CHECK(bench.finishes());  // no step is complete
  CHECK(bench.nothing_fed());
  bench.complete(4);
  disk.fail(FileOperation::kWriteAt, 1, EIO);
  CHECK_FALSE(bench.finishes());
  bench.wait_for_disk();
  CHECK(bench.nothing_fed());
  CHECK(bench.finishes());
  CHECK(bench.next().as<Persisted>().id == step(4));
  CHECK(files_in(job) == Files{{4, 0}, {4, 1}});
  CHECK(bench.finishes());
  bench.wait_for_disk();
  CHECK(bench.nothing_fed());
}

TEST_CASE(
    "persister: older files go when a newer step is everywhere, and older waits have failed") {
  InProcessJob job(2);
  auto options = job.options(0);
  options.keep = 2;
  DiskBench bench(options);
  std::vector<Work<DiskOutcome>> outcomes;
  for (const std::uint64_t number : {3, 4, 5}) {
    bench.complete(number);
    outcomes.push_back(bench.persist(number));
    CHECK(bench.next().as<Persisted>().id == step(number));
  }
  bench.all_on_disk(4);  // of step 3 no rank has said so
  CHECK(outcomes[0].get(soon()) == DiskOutcome::kFailed);
  CHECK(outcomes[1].get(soon()) == DiskOutcome::kEverywhere);
  CHECK_FALSE(outcomes[2].ready());
  bench.all_on_disk(5);
  CHECK(outcomes[2].get(soon()) == DiskOutcome::kEverywhere);
  bench.wait_for_disk();
  const auto files = files_in(job);
  CHECK(std::find(files.begin(), files.end(), std::pair<std::uint64_t, int>{3, 0}) == files.end());
  CHECK(std::find(files.begin(), files.end(), std::pair<std::uint64_t, int>{4, 0}) != files.end());
  CHECK(std::find(files.begin(), files.end(), std::pair<std::uint64_t, int>{5, 0}) != files.end());
}

TEST_CASE(
    "persister: finish() waits for files that go; those that stay are said, and in nobody's way") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  DiskBench bench(options);
  bench.at_end.emplace_back([&] { disk.unblock(); });
  for (const std::uint64_t number : {4, 5}) {
    bench.complete(number);
    (void)bench.persist(number);
    CHECK(bench.next().as<Persisted>().id == step(number));
  }
  disk.block(FileOperation::kUnlink);
  bench.all_on_disk(5);
  disk.wait_until_blocked();
  bench.engine.gate.recovered();
  CHECK_THROWS_AS(bench.engine.gate.wait_idle({1ms, [](std::uint32_t) {}}), Timeout);
  disk.unblock();
  bench.wait_for_disk();  // finish() waits for what is being removed
  CHECK(files_in(job) == Files{{5, 0}, {5, 1}});
  bench.complete(6);
  (void)bench.persist(6);
  CHECK(bench.next().as<Persisted>().id == step(6));
  disk.fail(FileOperation::kUnlink, 1, EIO);
  bench.all_on_disk(6);
  CHECK(bench.logs("cannot remove older images"));
  bench.wait_for_disk();
  bench.all_on_disk(6);
  bench.wait_for_disk();
  CHECK(files_in(job) == Files{{6, 0}, {6, 1}});
}
