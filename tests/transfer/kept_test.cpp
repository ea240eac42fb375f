// Blocks that the receiver holds already do not travel.
#include <atomic>
#include <cstring>
#include <functional>
#include <set>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/transfer/image.hpp>

#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/transfer/two_ranks.hpp"

using namespace meshstage;
using namespace meshstage::transfer;
using Catch::Matchers::Contains;

namespace {

constexpr std::uint64_t kBlock = 4096;
constexpr int kElements = 60 * 1024;  // of an i32: 60 blocks, and what is mixed

/// Images of the same structure whose blocks differ where `changed` says.
test::TestImage image_of(std::uint64_t step, const std::set<int>& changed) {
  auto weights = Tensor::arange<std::int32_t>(kElements);
  for (const int block : changed) weights.data<std::int32_t>()[block * 1024 + 5] = -1;
  return test::make_image(Dict{{"weights", weights}, {"step", static_cast<std::int64_t>(step)}},
                          {.block_bytes = kBlock}, test::identity_of_step(step));
}

transfer::Shape shape_of(const ImageInfo& info) {
  return {info.image_bytes, info.manifest_bytes, kBlock, false, 0, 0};
}

BlockDigests digests_of(const test::TestImage& image) {
  const auto& layout = image.plan.layout();
  BlockDigests digests(kBlock, layout.digested_bytes());
  for (std::size_t i = 0; i < digests.block_count(); ++i)
    digests.add(i, image.bytes().subspan(layout.data_begin + i * kBlock, digests.block_size(i)));
  return digests;
}

/// Two ranks, a slot at the second.
struct Exchange {
  Storage slot;
  Holding holding;
  std::uint64_t kept = 0;
  std::vector<std::string> errors;

  explicit Exchange(const test::TestImage& before) : slot(test::copy_of(before.bytes())) {
    const auto digests = digests_of(before);
    const auto whole = before.plan.layout().digested_bytes() / kBlock;
    for (std::size_t i = 0; i < whole; ++i) holding.held.blocks.push_back(digests.digest(i));
    holding.masked = true;
  }

  /// `told`: what the sender believes to be held.
  void send(const test::TestImage& image, std::span<const Digest> told,
            const std::function<void(Link&)>& after = {}) {
    const auto digests = digests_of(image);
    std::atomic<std::uint64_t> stayed{0};  // several connections, several threads
    const auto sender = [&](Link& link) {
      const Offered offered{
          told, [&](std::size_t block) -> std::optional<Digest> { return digests.digest(block); },
          [&](std::uint64_t bytes) { stayed += bytes; }};
      send_image(link, image.bytes(), shape_of(image.info), [](std::uint64_t) {}, offered);
      if (after) after(link);
    };
    const auto receiver = [&](Link& link) {
      std::string failed;
      try {
        const auto info = receive_image(link, slot.bytes(), shape_of(image.info),
                                        image.info.manifest_digest, image.info.identity, holding);
        if (info != image.info) failed = "another image";
      } catch (const CorruptData& e) {
        failed = e.what();
      }
      if (after) after(link);
      test::require(failed.empty(), failed);
    };
    errors = errors_between(sender, receiver);
    kept += stayed;
  }
  void send(const test::TestImage& image) {
    const auto told = holding.held.blocks;
    send(image, told);
  }
  [[nodiscard]] bool has(const test::TestImage& image) const {
    return std::memcmp(slot.data(), image.bytes().data(), image.bytes().size()) == 0;
  }
};

}  // namespace

TEST_CASE("only the blocks that changed travel, and the image is the one that was sent") {
  const auto before = image_of(1, {});
  const std::set<int> changed = GENERATE(std::set<int>{}, std::set<int>{0},
                                         std::set<int>{15, 16, 17}, std::set<int>{3, 31, 32, 59});
  const auto now = image_of(3, changed);
  Exchange exchange(before);
  exchange.send(now);
  CHECK(exchange.errors == std::vector<std::string>(2));
  CHECK(exchange.has(now));
  // What holds no changed element: all whole blocks but those, and the one with the scalars.
  CHECK(exchange.kept == (60 - changed.size()) * kBlock);
  CHECK(exchange.holding.kept_bytes == exchange.kept);
  // What is held now is what is there.
  const auto digests = digests_of(now);
  REQUIRE(exchange.holding.blocks.size() == now.plan.layout().digested_bytes() / kBlock);
  for (std::size_t i = 0; i < exchange.holding.blocks.size(); ++i)
    CHECK(exchange.holding.blocks[i] == digests.digest(i));
}

TEST_CASE("a sender that does not know a block's digest sends the block") {
  const auto before = image_of(1, {});
  const auto now = image_of(3, {});
  Exchange exchange(before);
  const std::vector<Digest> wrong(exchange.holding.held.blocks.size());
  exchange.send(now, wrong);
  CHECK(exchange.errors == std::vector<std::string>(2));
  CHECK(exchange.kept == 0);
  CHECK(exchange.has(now));
  CHECK_FALSE(stays(wrong[0], std::nullopt));
}

TEST_CASE("a block that has changed in the slot is found in its turn, and fails the image") {
  const auto before = image_of(1, {});
  const auto now = image_of(3, {});
  int found = 0;
  for (std::uint64_t turn = 0; turn < kVerifyOneIn; ++turn) {
    Exchange exchange(before);
    exchange.holding.held.times_kept = turn;
    exchange.slot.data()[before.info.manifest_bytes + 21 * kBlock + 7] ^= std::byte{1};
    exchange.send(now);
    if (exchange.errors[1].empty()) continue;
    ++found;
    CHECK_THAT(exchange.errors[1], Contains("block 21 has changed since it was received"));
    CHECK(exchange.holding.blocks.empty());
  }
  CHECK(found == 1);
}

TEST_CASE("a sender that leaves out what is not held fails the image, and the next one arrives") {
  const auto before = image_of(1, {});
  const auto now = image_of(3, {7});
  Exchange exchange(before);
  const auto all = digests_of(now);
  std::vector<Digest> believed;
  for (std::size_t i = 0; i < exchange.holding.held.blocks.size(); ++i)
    believed.push_back(all.digest(i));
  const auto next = [&](Link& link) {
    if (link.peer == 1)
      return send_image(link, now.bytes(), shape_of(now.info), [](std::uint64_t) {});
    auto info = receive_image(link, exchange.slot.bytes(), shape_of(now.info),
                              now.info.manifest_digest, now.info.identity);
    CHECK(info == now.info);
  };
  SECTION("other bytes are held") {
    exchange.send(now, believed, next);
    CHECK_THAT(exchange.errors[1], Contains("block 7") && Contains("weights"));
  }
  SECTION("nothing is held") {
    exchange.holding.held.blocks.clear();
    exchange.send(now, believed, next);
    CHECK_THAT(exchange.errors[1], Contains("are not here and were not sent"));
  }
  CHECK(exchange.has(now));
}

TEST_CASE("an image with masks that nobody wants is taken to its end") {
  const auto before = image_of(1, {});
  const auto now = image_of(3, {2, 40});
  const auto digests = digests_of(now);
  Exchange exchange(before);
  const auto shape = shape_of(now.info);
  const auto sender = [&](Link& link) {
    std::atomic<std::uint64_t> stayed{0};  // as above
    const Offered offered{
        exchange.holding.held.blocks,
        [&](std::size_t block) -> std::optional<Digest> { return digests.digest(block); },
        [&](std::uint64_t bytes) { stayed += bytes; }};
    send_image(link, now.bytes(), shape, [](std::uint64_t) {}, offered);
    CHECK(stayed > 0);
    send_image(link, now.bytes(), shape, [](std::uint64_t) {});
  };
  const auto receiver = [&](Link& link) {
    drain_image(link, shape, true);
    CHECK(receive_image(link, exchange.slot.bytes(), shape, now.info.manifest_digest,
                        now.info.identity) == now.info);
  };
  CHECK(errors_between(sender, receiver) == std::vector<std::string>(2));
}
