// The part `verifier` alone: what a replica borrows, bridges, and a generation that ends in
// between.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <future>
#include <memory>
#include <mutex>
#include <new>
#include <stop_token>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>

#include "tests/replicate/played_peers.hpp"
#include "tests/replicate/verifier_calls.hpp"
#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace test::verifier;
using replicate::Verifier;
using test::FaultyRank;
using test::InProcessJob;
using test::PartBench;

constexpr auto kGeneration = PartBench::kGeneration;

}  // namespace

TEST_CASE("verifier: a replica that borrows is completed from its lenders") {
  InProcessJob job(4);
  auto options = job.options(2);
  options.job = "job";
  PartBench bench(options);
  const auto image = test::borrowing_image();  // of rank 2
  const ImageId id = image.info.identity.id;
  const Storage replica = test::replica_of(image);
  const Storage target = Storage::allocate(image.info.image_bytes);
  // Else memory that was freed just now may have the borrowed bytes.
  std::fill(target.bytes().begin(), target.bytes().end(), std::byte{0xA5});
  const StraySlot stray{0, {2, 0}, image.info, replica.bytes(), nullptr};
  CHECK(load(bench, {{}, std::make_shared<const StraySlot>(stray)}, target, image.info).result ==
        ImageInfo{});

  const auto missing_in = [&](protocol::ImageSizes sizes) {
    return answer_of<std::vector<Verifier::Missing>>(
        bench, [&](const auto& then, const auto& failed) {
          bench.verifier.missing(target.bytes(), sizes, id, then, failed);
        });
  };
  auto sizes = test::sizes_of(image.info);
  const auto missing = missing_in(sizes).result.value();
  REQUIRE(missing.size() == 2);
  CHECK(missing[0].lender == 0);
  CHECK(missing[1].lender == 3);
  CHECK(missing[0].want.storages.size() == 2);
  CHECK(missing[1].want.storages.size() == 1);
  sizes.manifest_digest = {1, 2};
  CHECK(missing_in(sizes).kind == ErrorKind::kCorruptData);

  const auto prove = [&] {
    return answer_of<ImageInfo>(bench, [&](const auto& then, const auto& failed) {
      bench.verifier.prove(0, target.bytes(), image.info.manifest_digest, image.info.identity, then,
                           failed);
    });
  };
  CHECK(prove().kind == ErrorKind::kCorruptData);
  for (const auto& part : missing) {
    for (const auto& range : part.ranges) {
      std::memcpy(target.bytes().data() + range.offset, image.bytes().data() + range.offset,
                  range.bytes);
    }
  }
  CHECK(prove().result == image.info);
  CHECK(test::same_bytes(target.bytes(), image.bytes()));

  // The lender's side.
  test::seal_in(bench.engine.vault, {2, 0}, image);
  const auto lent = [&](std::uint64_t bytes) {
    return answer_of<Verifier::Source>(bench, [&](const auto& then, const auto& failed) {
      bench.verifier.lent({id, {{"both.b", bytes}}}, 0, 1, then, failed);
    });
  };
  CHECK(lent(8192).result->ranges.size() == 1);
  CHECK(lent(8191).kind == ErrorKind::kCorruptData);
}

TEST_CASE("verifier: a bridge that fails says so, and leaving the generation ends it") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  auto& connect = bench.engine.generation.connect_pairs;
  const auto connected = [&] {
    return answer_of<bool>(bench, [&](const auto& then, const auto& failed) {
      bench.verifier.connect({1}, [then] { then(true); }, failed);
    });
  };
  connect = [](const auto&, Deadline, const auto&) -> Pairs { throw Timeout("rank 1"); };
  CHECK(connected().kind == ErrorKind::kTimeout);
  connect = [](const auto&, Deadline, const auto&) -> Pairs { throw std::bad_alloc(); };
  CHECK(connected().kind == ErrorKind::kOutOfMemory);
  connect = [](const auto&, Deadline, const auto&) -> Pairs {
    return {std::make_shared<test::PlayedLinks>(), nullptr};
  };
  CHECK(connected().result == true);
  CHECK(bench.engine.bridge.links_to(1) != nullptr);
  bench.in_loop([&] { bench.verifier.disconnect(); });
  (void)slots(bench);  // behind it
  CHECK(bench.engine.bridge.links_to(1) == nullptr);

  std::promise<ErrorKind> ended;
  connect = [](const auto&, Deadline, const std::stop_token& stop) -> Pairs {
    std::mutex mutex;
    std::condition_variable_any changed;
    std::unique_lock lock(mutex);
    changed.wait(lock, stop, [] { return false; });
    throw Cancelled("stopped");
  };
  bench.in_loop([&] {
    bench.verifier.connect({1}, [] {}, [&](ErrorKind kind, const auto&) { ended.set_value(kind); });
  });
  bench.leave();
  CHECK(ended.get_future().get() == ErrorKind::kCancelled);
}

TEST_CASE("verifier: nothing is read behind the end of a generation") {
  InProcessJob job(2);
  auto [options, faulty] = FaultyRank(job.options(0));
  PartBench bench(options);
  bench.at_end.emplace_back([&] { faulty.unblock(); });
  const auto image = test::image_of_step(0, 2, ImageId{kGeneration, 4});
  bench.files.publish(image.info, image.bytes());
  int answers = 0;
  const auto ask = [&] {
    bench.in_loop([&] {
      bench.verifier.disk({kNoImage, false}, [&](const Verifier::Found&) { ++answers; });
    });
  };
  faulty.block(FileOperation::kList);
  ask();
  faulty.wait_until_blocked();
  bench.leave([&] { faulty.unblock(); });  // waits for what has begun
  CHECK(answers == 1);
  ask();
  bench.enter(kGeneration + 1);
  CHECK(disk(bench).claims.size() == 1);  // behind what would be read now
  CHECK(answers == 1);
}
