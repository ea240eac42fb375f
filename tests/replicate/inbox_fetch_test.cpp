// The part `inbox` alone: images that a recovery fetches, with what they borrow. The test is the
// protocol, the ranks that serve, and the lenders.
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/transfer/image.hpp>
#include <meshstage/core/transfer/ranges.hpp>

#include "tests/replicate/part_images.hpp"
#include "tests/replicate/played_peers.hpp"
#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using exchange::Content;
using exchange::StreamStart;
using protocol::Claim;
using protocol::Fetched;
using protocol::FetchFailed;
using replicate::Verifier;
using test::FaultyRank;
using test::InProcessJob;
using test::PartBench;
using test::PlayedPeers;
using test::TestImage;

constexpr ImageId kId{PartBench::kGeneration - 1, 4};

/// A rank that fetches.
class FetchBench : public PartBench {
 public:
  FetchBench(InProcessJob& job, const CheckpointerOptions& options, const std::vector<int>& others)
      : PartBench(options), peers(job, *this, others) {
    in_loop([this] { engine.state.mode = protocol::Mode::kRecovering; });
  }
  void fetch(const Claim& claim, int slot = 0, std::optional<Verifier::Here> here = {}) {
    in_loop([&] { inbox.fetch({claim, slot}, here); });
  }
  void begin_stream(int from, const StreamStart& start) {
    in_loop([&] { inbox.stream(from, start); });
  }
  void established() {
    in_loop([this] {
      engine.state.mode = protocol::Mode::kReady;
      inbox.established();
    });
  }
  StreamStart start_of(const Claim& claim) {
    return exchange::stream_start(
        claim.owner, claim.id,
        engine.shape_of(claim.sizes, true, replicate::sends_replica(claim, engine.rank)));
  }
  void send(int from, std::span<const std::byte> image, const StreamStart& start) {
    transfer::send_image(peers.link(from), image, exchange::shape_of(start), [](std::uint64_t) {});
  }
  FetchFailed failed(int owner) {
    auto fed = next().as<FetchFailed>();
    test::require(fed.owner == owner, "another fetch failed");
    return fed;
  }

  PlayedPeers peers;
};

/// Rank 1 has the image: its own, or rank 0's.
Claim claim_at_1(const TestImage& image) {
  return protocol::claim_of(
      image.info, {}, 1,
      image.info.identity.rank == 1 ? protocol::Place::kOwnSlot : protocol::Place::kHeldSlot, 0);
}

}  // namespace

TEST_CASE("inbox: an image is fetched, whichever comes first, the choice or the stream") {
  InProcessJob job(2);
  FetchBench bench(job, job.options(0), {1});
  const auto own = test::image_of_step(0, 2, kId), held = test::image_of_step(1, 2, kId);
  const bool stream_first = GENERATE(false, true);
  if (stream_first) {  // and the one behind it waits, too
    bench.begin_stream(1, bench.start_of(claim_at_1(own)));
    bench.begin_stream(1, bench.start_of(claim_at_1(held)));
    bench.fetch(claim_at_1(held));
    CHECK(bench.nothing_fed());
    bench.fetch(claim_at_1(own), 1);
  } else {
    bench.fetch(claim_at_1(own), 1);
    bench.fetch(claim_at_1(held));
    bench.begin_stream(1, bench.start_of(claim_at_1(own)));
    bench.begin_stream(1, bench.start_of(claim_at_1(held)));
  }
  bench.send(1, own.bytes(), bench.start_of(claim_at_1(own)));
  CHECK(bench.next().as<Fetched>().owner == 0);
  bench.send(1, held.bytes(), bench.start_of(claim_at_1(held)));
  CHECK(bench.next().as<Fetched>().owner == 1);
  CHECK(test::has_sealed(bench.engine.vault, {0, 1}, own));
  CHECK(test::has_sealed(bench.engine.vault, {1, 0}, held));
  bench.established();
  CHECK(bench.nothing_fed());
}

TEST_CASE("inbox: a fetch that cannot have its slot takes its pieces to nowhere") {
  InProcessJob job(2);
  auto [options, disk] = FaultyRank(job.options(0));
  FetchBench bench(job, options, {1});
  const auto image = test::image_of_step(0, 2, kId);
  const auto start = bench.start_of(claim_at_1(image));
  const bool stream_first = GENERATE(false, true);
  if (stream_first) bench.begin_stream(1, start);
  disk.fail(FileOperation::kReserve, 1, ENOSPC);
  bench.fetch(claim_at_1(image));
  CHECK(bench.failed(0).kind == ErrorKind::kOutOfMemory);
  if (!stream_first) bench.begin_stream(1, start);
  bench.send(1, image.bytes(), start);  // returns: each piece is taken
  bench.wait_for_streams();
  CHECK(bench.nothing_fed());
}

TEST_CASE("inbox: a fetched image that is damaged, or whose sender dies, is not sealed") {
  InProcessJob job(2);
  FetchBench bench(job, job.options(0), {1});
  const auto image = test::image_of_step(0, 2, kId);
  const auto start = bench.start_of(claim_at_1(image));
  bench.fetch(claim_at_1(image));
  bench.begin_stream(1, start);
  bench.wait_for_slots();  // so it is being received
  SECTION("a byte") {
    image.bytes()[image.info.manifest_bytes + 5] ^= std::byte{1};
    bench.send(1, image.bytes(), start);
    CHECK(bench.failed(0).kind == ErrorKind::kCorruptData);
  }
  SECTION("the sender dies") {
    job.fabric().kill(1);
    CHECK_THAT(bench.next().called, contains_text("lose_in_transfer: 1 "));
  }
  SECTION("this rank aborts its transfers: whoever did so says why") {
    bench.engine.generation.data->abort(std::make_exception_ptr(Cancelled("the cause")));
    bench.wait_for_streams();
  }
  CHECK(bench.nothing_fed());
  CHECK(bench.engine.vault.slot({0, 0}).state == SlotState::kWriting);
}

TEST_CASE("inbox: what lies here is read, if this rank has verified it") {
  InProcessJob job(2);
  FetchBench bench(job, job.options(0), {1});
  const auto image = test::image_of_step(0, 2, kId);
  bench.files.publish(image.info, image.bytes());
  const Verifier::Here here{"/disk/" + job.disk().list("/disk").front(), nullptr};
  const auto claim = protocol::claim_of(image.info, {}, 0, protocol::Place::kOwnFile, 0);
  bench.fetch(claim);
  CHECK(bench.failed(0).kind == ErrorKind::kNotFound);
  auto other = claim;
  other.image_digest = {1, 2};
  bench.fetch(other, 0, here);
  CHECK(bench.failed(0).kind == ErrorKind::kCorruptData);
  bench.in_loop([&] { bench.slots.hold({0, 0}); });
  bench.fetch(claim, 0, here);
  CHECK(bench.nothing_fed());
  bench.in_loop([&] { bench.slots.release(SlotKey{0, 0}); });
  CHECK(bench.next().as<Fetched>().owner == 0);
  CHECK(test::has_sealed(bench.engine.vault, {0, 0}, image));
}

TEST_CASE("inbox: streams that waited for a fetch are refused when the recovery is over") {
  InProcessJob job(2);
  FetchBench bench(job, job.options(0), {1});
  bench.begin_stream(1, bench.start_of(claim_at_1(test::image_of_step(0, 2, kId))));
  CHECK(bench.nothing_fed());
  bench.established();
  CHECK(bench.logs("which this rank did not ask for"));
  CHECK(bench.nothing_fed());
}

TEST_CASE("inbox: a replica that borrows is whole when its lenders' bytes are there and right") {
  InProcessJob job(4);
  auto options = job.options(2);
  options.job = "job";  // as that image's
  options.borrowed.lenders = {{}, {}, {0, 3}, {}};
  FetchBench bench(job, options, {0, 3});
  const auto image = test::borrowing_image();  // of rank 2
  auto claim =
      protocol::claim_of(image.info, read_loans(image.bytes()), 0, protocol::Place::kHeldSlot, 0);
  const auto start = bench.start_of(claim);
  bool damaged = false;
  SECTION("they are") {}
  SECTION("one of them has other bytes") { damaged = true; }
  SECTION("it borrows from others than the recovery chose") {
    claim.borrowed.pop_back();
    bench.fetch(claim);
    bench.begin_stream(0, start);
    bench.send(0, image.bytes(), start);
    CHECK(bench.failed(2).kind == ErrorKind::kCorruptData);
    CHECK(bench.peers.links->nothing_sent());
    return;
  }
  bench.fetch(claim);
  bench.begin_stream(0, start);
  bench.send(0, image.bytes(), start);
  for (const int lender : {0, 3}) {
    const auto want = bench.peers.next<protocol::Want>(lender);
    CHECK(want.id == claim.id);
    std::vector<std::string> names;
    transfer::Shape shape{.block_bytes = 4096, .with_manifest = false};
    for (const auto& storage : want.storages) {
      names.push_back(storage.name);
      shape.image_bytes += storage.bytes;
    }
    std::vector<ImageRange> ranges;
    for (const auto& range : find_ranges(image.bytes(), names)) ranges.push_back(range.value());
    if (damaged && lender == 3) image.bytes()[ranges[0].offset + 1] ^= std::byte{1};
    CHECK(bench.nothing_fed());
    bench.begin_stream(lender, exchange::stream_start(2, claim.id, shape, Content::kLent));
    transfer::send_ranges(bench.peers.link(lender), image.bytes(), ranges, 4096);
  }
  if (damaged) {
    CHECK(bench.failed(2).kind == ErrorKind::kCorruptData);
  } else {
    CHECK(bench.next().as<Fetched>().owner == 2);
    CHECK(test::has_sealed(bench.engine.vault, {2, 0}, image));
  }
  CHECK(bench.nothing_fed());
}
