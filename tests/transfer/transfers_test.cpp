// Images, replicas and what they borrow, from one memory to another over a process group.
#include <cstring>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/transfer/image.hpp>
#include <meshstage/core/transfer/ranges.hpp>

#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"
#include "tests/transfer/two_ranks.hpp"

using namespace meshstage;
using namespace meshstage::transfer;
using Catch::Matchers::Contains;

namespace {

using Shape = transfer::Shape;

void between(const End& sender, const End& receiver) {
  CHECK(errors_between(sender, receiver) == std::vector<std::string>(2));
}

Storage filled(std::uint64_t bytes) {
  auto memory = Storage::allocate(bytes);
  std::memset(memory.data(), 0xEE, memory.nbytes());
  return memory;
}

bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

Shape shape_of(const ImageInfo& info, bool replica, std::uint64_t block_bytes = 4096) {
  return {
      info.image_bytes, info.manifest_bytes, block_bytes, true, replica ? info.borrowed_bytes : 0,
      info.loans};
}

void at_once(std::uint64_t) {}

End sending(std::span<const std::byte> image, const Shape& shape) {
  return [image, shape](Link& link) { send_image(link, image, shape, at_once); };
}

/// Receives and proves; puts what the image says of itself into `info`.
End receiving(std::span<std::byte> into, const Shape& shape, const ImageInfo& expected,
              ImageInfo& info) {
  return [=, &info](Link& link) {
    info = receive_image(link, into, shape, expected.manifest_digest, expected.identity);
  };
}

}  // namespace

TEST_CASE("an image and its replica arrive as they were, from either's memory") {
  const auto image = test::borrowing_image();
  const auto replica = test::replica_of(image);
  const bool as_replica = GENERATE(false, true);
  // Blocks of another size than the image's, too: a job came back with another option.
  const std::uint64_t block = GENERATE(4096U, 8192U, 1U << 20U);
  const auto shape = shape_of(image.info, as_replica, block);
  const auto wanted = as_replica ? replica.bytes() : image.bytes();
  for (const auto& from : {image.bytes(), replica.bytes()}) {
    if (!as_replica && from.size() != image.bytes().size()) continue;
    const auto there = filled(wanted.size());
    ImageInfo info;
    between(sending(from, shape), receiving(there.bytes(), shape, image.info, info));
    CHECK(info == image.info);
    CHECK(equal(there.bytes(), wanted));
  }
}

TEST_CASE(
    "a replica that is little more than its trailer arrives in smaller pieces than its blocks") {
  const auto image = test::make_image(Dict{{"both", test::bytes_tensor(4 << 20, 1)}},
                                      {.block_bytes = 1U << 20U, .borrowed = {{0, {"both"}}}},
                                      test::identity_of_step(85));
  REQUIRE(image.info.borrowed_bytes == 4U << 20U);
  const auto replica = test::replica_of(image);
  const auto shape = shape_of(image.info, true);
  const auto there = filled(replica.nbytes());
  ImageInfo info;
  between(sending(image.bytes(), shape), receiving(there.bytes(), shape, image.info, info));
  CHECK(info == image.info);
  CHECK(equal(there.bytes(), replica.bytes()));
}

TEST_CASE("a manifest that is there already does not travel again") {
  const auto image = test::borrowing_image();
  const auto replica = test::replica_of(image);
  auto shape = shape_of(image.info, true);
  shape.with_manifest = false;
  const auto there = filled(replica.nbytes());
  std::memcpy(there.data(), image.bytes().data(), image.info.manifest_bytes);
  ImageInfo info;
  std::uint64_t pieces = 0;
  between(
      [&](Link& link) {
        link.on_piece = [&](std::uint64_t, std::uint64_t of) { pieces = of; };
        send_image(link, image.bytes(), shape, at_once);
      },
      receiving(there.bytes(), shape, image.info, info));
  CHECK(info == image.info);
  CHECK(equal(there.bytes(), replica.bytes()));
  CHECK(pieces == (replica.nbytes() - image.info.manifest_bytes + 4095) / 4096);
}

TEST_CASE("a sender waits for what it sends to be final, counted in the whole image") {
  const auto image = test::borrowing_image();
  const auto shape = shape_of(image.info, true);
  for (const auto& from : {image.memory, test::replica_of(image)}) {
    Mutex mutex;  // each connection has a thread
    std::vector<std::uint64_t> ends;
    between(
        [&](Link& link) {
          send_image(link, from.bytes(), shape, [&](std::uint64_t end) {
            const MutexLock lock(mutex);
            ends.push_back(end);
          });
        },
        [&](Link& link) { drain_image(link, shape); });
    if (kConnections > 1) std::sort(ends.begin(), ends.end());
    std::vector<std::uint64_t> expected;
    for (const auto& piece : pieces_of(shape)) expected.push_back(piece.offset + piece.bytes);
    CHECK(ends == expected);
    CHECK(ends.back() == image.info.image_bytes);
  }
}

TEST_CASE("a replica in a whole image's memory borrows from other ranks' images, and is proven") {
  const auto image = test::borrowing_image();
  const auto replica = test::replica_of(image);
  const auto others = test::other_images(test::borrowing_state());
  const auto shape = shape_of(image.info, true);
  const auto whole = filled(image.info.image_bytes);
  const auto source = GENERATE(false, true);
  between(sending(source ? replica.bytes() : image.bytes(), shape),
          [&](Link& link) { receive_pieces(link, whole.bytes(), shape); });
  const auto gap = whole.bytes().subspan(image.info.manifest_bytes, image.info.borrowed_bytes);
  CHECK(std::all_of(gap.begin(), gap.end(), [](std::byte b) { return b == std::byte{0xEE}; }));

  const auto proof = [&] {
    return prove_image(0, whole.bytes(), image.info.manifest_digest, image.info.identity);
  };
  CHECK_THROWS_AS(proof(), CorruptData);
  const auto parts = borrowed_parts(whole.bytes(), image.info);
  for (const auto& part : parts) {
    std::vector<std::string> names;
    for (const auto& piece : part.pieces) names.push_back(piece.name);
    const auto other = others[static_cast<std::size_t>(part.rank)].bytes();
    std::vector<ImageRange> theirs;
    for (const auto& range : find_ranges(other, names)) theirs.push_back(range.value());
    between([&](Link& link) { send_ranges(link, other, theirs, 4096); },
            [&](Link& link) { receive_ranges(link, whole.bytes(), ranges_of(part), 4096); });
  }
  CHECK_THROWS_AS(proof(), CorruptData);
  clear_borrowed_padding(parts, image.info, whole.bytes());
  CHECK(proof() == image.info);
  CHECK(equal(whole.bytes(), image.bytes()));

  auto elsewhere = image.info.identity;
  elsewhere.id.step += 1;
  CHECK_THROWS_AS(prove_image(0, whole.bytes(), image.info.manifest_digest, elsewhere),
                  CorruptData);
  CHECK_THROWS_AS(prove_image(0, whole.bytes(), Digest{1, 2}, image.info.identity), CorruptData);
}

TEST_CASE("what arrives and is not what was announced is refused once all of it has come") {
  const auto image = test::borrowing_image();
  const std::uint64_t block = GENERATE(4096U, 8192U);
  const auto shape = shape_of(image.info, true, block);
  const auto refused = [&](const Storage& from, const ImageInfo& expected) {
    const auto there = filled(image.info.replica_bytes());
    ImageInfo info;
    auto errors = errors_between(sending(from.bytes(), shape),
                                 receiving(there.bytes(), shape, expected, info));
    CHECK(errors[0].empty());
    CHECK(equal(there.bytes().last(4096), from.bytes().last(4096)));
    return errors[1];
  };
  auto damaged = test::replica_of(image);
  const auto own = find_ranges(image.bytes(), std::vector<std::string>{"own"}).at(0).value();
  damaged.data()[own.offset - image.info.borrowed_bytes] ^= std::byte{1};
  CHECK_THAT(refused(damaged, image.info), Contains("it holds own"));
  damaged = test::replica_of(image);
  damaged.data()[100] ^= std::byte{1};
  CHECK_THAT(refused(damaged, image.info), Contains("the manifest does not match its digest"));
  auto expected = image.info;
  expected.manifest_digest.low ^= 1;
  CHECK_THAT(refused(image.memory, expected), Contains("not the one that was announced"));
  expected = image.info;
  expected.identity.id.step += 1;
  CHECK_THAT(refused(image.memory, expected), Contains("rank 0 sent"));
}

TEST_CASE("memory of neither an image's size nor its replica's takes no part") {
  const auto image = test::borrowing_image();
  const auto replica = test::replica_of(image);
  const auto whole = shape_of(image.info, false);
  const auto part = shape_of(image.info, true);
  ImageInfo info;
  const auto refused = [](const End& end) {
    const auto errors = errors_between(end, [](Link&) {});
    CHECK_THAT(errors[0], Contains("bytes"));
  };
  refused(sending(replica.bytes(), whole));  // there is nothing to send the gap from
  refused(sending(image.bytes().first(image.bytes().size() - 1), part));
  refused(receiving(image.bytes(), part, image.info, info));
  refused(receiving(replica.bytes(), whole, image.info, info));
  const auto short_one = filled(100);
  refused([&](Link& link) { receive_pieces(link, short_one.bytes(), part); });
}

TEST_CASE("ranges travel one behind the other, in pieces that split them and join them") {
  constexpr std::uint64_t kBytes = 200'000;
  const auto from = Storage::allocate(kBytes);
  for (std::uint64_t i = 0; i < kBytes; ++i)
    from.data()[i] = static_cast<std::byte>(i * 2654435761U >> 13U);
  // Small ones that share a piece, some that end where a piece does, one longer than the window.
  const std::vector<std::uint64_t> sizes{1, 999, 1000, 7, 13, 30'500, 480, 1, 2000, 4999};
  std::vector<Piece> there, here;
  std::uint64_t at = 3, total = 0;
  for (const auto size : sizes) {
    there.push_back({at, size});
    here.insert(here.begin(), Piece{kBytes - at - size, size});
    at += size + 11;
    total += size;
  }
  std::reverse(here.begin(), here.end());  // the same sizes, in memory in the other direction
  const std::uint64_t block = GENERATE(1U, 100U, 1000U, 4096U, 1U << 20U);
  const auto into = filled(kBytes);
  std::uint64_t sent = 0, received = 0;
  between(
      [&](Link& link) {
        link.on_piece = [&](std::uint64_t, std::uint64_t of) { sent = of; };
        send_ranges(link, from.bytes(), there, block);
      },
      [&](Link& link) {
        link.on_piece = [&](std::uint64_t, std::uint64_t of) { received = of; };
        receive_ranges(link, into.bytes(), here, block);
      });
  CHECK(sent == (total + block - 1) / block);
  CHECK(received == sent);
  const auto expected = filled(kBytes);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    std::memcpy(expected.data() + here[i].offset, from.data() + there[i].offset, sizes[i]);
  }
  CHECK(equal(into.bytes(), expected.bytes()));  // and nothing else was written
}

TEST_CASE("no range travels that does not lie in its image") {
  const auto image = filled(1000);
  for (const Piece beyond : {Piece{999, 2}, Piece{1001, 0}, Piece{1, ~std::uint64_t{0}}}) {
    const std::vector<Piece> ranges{{0, 10}, beyond};
    for (const End& end :
         {End([&](Link& link) { send_ranges(link, image.bytes(), ranges, 64); }),
          End([&](Link& link) { receive_ranges(link, image.bytes(), ranges, 64); })}) {
      CHECK_THAT(errors_between(end, [](Link&) {})[0], Contains("do not lie in an image of 1000"));
    }
  }
  between([&](Link& link) { send_ranges(link, image.bytes(), {}, 64); }, [](Link&) {});
}
