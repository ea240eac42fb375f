// What another rank has too is left out of the replica, and found again in that rank's own image.
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/replica.hpp>

#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using Catch::Matchers::Contains;

namespace {

/// The replica's bytes put where they belong, the borrowed storages from the ranks' own images.
Storage put_together(const Storage& replica, const std::vector<test::TestImage>& others) {
  const auto info = verify_replica(replica.bytes());
  auto whole = Storage::allocate(info.image_bytes);
  std::memset(whole.data(), 0xEE, whole.nbytes());
  place_replica(replica.bytes(), info, whole.bytes());
  const auto parts = borrowed_parts(replica.bytes(), info);
  clear_borrowed_padding(parts, info, whole.bytes());
  for (const auto& part : parts) {
    std::vector<std::string> names;
    for (const auto& piece : part.pieces) names.push_back(piece.name);
    const auto other = others.at(static_cast<std::size_t>(part.rank)).bytes();
    const auto ranges = find_ranges(other, names);
    for (std::size_t i = 0; i < names.size(); ++i) {
      REQUIRE(ranges[i].has_value());
      REQUIRE(ranges[i]->bytes == part.pieces[i].bytes);
      std::memcpy(whole.data() + part.pieces[i].offset, other.data() + ranges[i]->offset,
                  ranges[i]->bytes);
    }
  }
  return whole;
}

}  // namespace

TEST_CASE("a replica and the other ranks' own images make the whole image again, byte for byte") {
  const auto image = test::borrowing_image();
  const auto replica = test::replica_of(image);
  CHECK(image.info.borrowed_bytes ==
        20480);  // 5000 and 8192 of rank 0, 4096 of rank 3, each aligned
  CHECK(replica.nbytes() == image.bytes().size() - 20480);
  CHECK(image.info.replica_bytes() == replica.nbytes());
  CHECK(read_replica_info(replica.bytes()) == image.info);
  CHECK(verify_replica(replica.bytes()) == image.info);
  CHECK(verify_image(image.bytes()) == image.info);

  const auto parts = borrowed_parts(replica.bytes(), image.info);
  CHECK(parts == borrowed_parts(image.bytes(), image.info));
  const auto begin = image.info.manifest_bytes;
  CHECK(parts ==
        std::vector<BorrowedPart>{{0, {{"both.a", begin, 5000}, {"both.b", begin + 5056, 8192}}},
                                  {3, {{"last", begin + 13248, 4096}}}});

  // The others have the same storages, elsewhere in images of another structure.
  const auto state = test::borrowing_state();
  const auto others = test::other_images(state);
  const auto whole = put_together(replica, others);
  CHECK(std::memcmp(whole.data(), image.bytes().data(), whole.nbytes()) == 0);
  CHECK(verify_image(whole.bytes()) == image.info);
  CHECK_FALSE(compare(state, decode_image(whole.bytes(), nullptr)));
}

TEST_CASE("the replica of an image that borrows nothing is the image itself") {
  const auto image = test::make_image(test::borrowing_state());
  CHECK(image.info.borrowed_bytes == 0);
  CHECK(image.info.replica_bytes() == image.info.image_bytes);
  CHECK(verify_replica(image.bytes()) == image.info);
  CHECK(borrowed_parts(image.bytes(), image.info).empty());
  const auto whole = put_together(test::replica_of(image), {});
  CHECK(std::memcmp(whole.data(), image.bytes().data(), whole.nbytes()) == 0);
}

TEST_CASE("neither form is taken for the other") {
  const auto image = test::borrowing_image();
  const auto replica = test::replica_of(image);
  CHECK_THAT(test::refusal([&] { (void)verify_image(replica.bytes()); }),
             Contains("this is its replica"));
  CHECK_THAT(test::refusal([&] { (void)read_info(replica.bytes()); }),
             Contains("this is its replica"));
  CHECK_THAT(test::refusal([&] { (void)verify_replica(image.bytes()); }),
             Contains("this is the whole image"));
  CHECK_THROWS_AS(decode_image(replica.bytes(), nullptr), CorruptData);
  // Blocks that were digested as those of the other form.
  BlockDigests all(4096, image.plan.layout().digested_bytes());
  BlockDigests rest(4096, image.plan.layout().digested_bytes(), 5);
  for (std::size_t i = 0; i < all.block_count(); ++i) {
    const auto block =
        image.bytes().subspan(image.info.manifest_bytes + 4096 * i, all.block_size(i));
    all.add(i, block);
    CHECK_FALSE(rest.complete());
    if (i >= 5) rest.add(i, block);
  }
  CHECK(rest.complete());
  CHECK(check_blocks(image.bytes(), all) == image.info);
  CHECK(check_replica_blocks(replica.bytes(), rest) == image.info);
  CHECK_THAT(test::refusal([&] { (void)check_replica_blocks(replica.bytes(), all); }),
             Contains("begins with block 5"));
  CHECK_THROWS_AS(check_blocks(image.bytes(), rest), InvalidArgument);
  CHECK_THROWS_AS(rest.add(4, replica.bytes().first(4096)), InvalidArgument);
  CHECK_THROWS_AS(BlockDigests(4096, 8192, 3), InvalidArgument);
}

TEST_CASE("a flipped byte anywhere in a replica is noticed, and a tensor's is named") {
  const auto image = test::borrowing_image();
  auto replica = test::replica_of(image);
  const auto flipped = [&](std::size_t at) {
    replica.data()[at] ^= std::byte{0x10};
    std::string path, message;
    try {
      (void)verify_replica(replica.bytes());
    } catch (const CorruptData& e) {
      message = e.what();
      path = e.path();
    }
    replica.data()[at] ^= std::byte{0x10};
    INFO("byte " << at);
    CHECK_FALSE(message.empty());
    return path;
  };
  for (std::size_t at = 0; at < replica.nbytes(); at += 61) flipped(at);
  const auto own = find_ranges(image.bytes(), std::vector<std::string>{"own"}).at(0).value();
  CHECK(flipped(own.offset - image.info.borrowed_bytes + own.bytes - 1) == "own");
  CHECK(verify_replica(replica.bytes()) == image.info);
  CHECK_THROWS_AS(verify_replica(replica.bytes().first(replica.nbytes() - 1)), CorruptData);
}

TEST_CASE("a trailer whose borrowed bytes make no sense is refused in both forms") {
  const auto image = test::borrowing_image();
  const auto digested = image.plan.layout().digested_bytes();
  const auto check = [&](std::size_t at, std::uint64_t value, std::size_t bytes, const char* why) {
    INFO("field " << at << " = " << value);
    const auto whole = test::with_trailer_field(image.memory, at, value, bytes);
    CHECK_THAT(test::refusal([&] { (void)verify_image(whole.bytes()); }), Contains(why));
    const auto replica = test::with_trailer_field(test::replica_of(image), at, value, bytes);
    CHECK_THROWS_AS(verify_replica(replica.bytes()), CorruptData);
  };
  check(8, 1, 4, "version 1 cannot");
  check(8, 3, 4, "versions 1 and 2");
  check(168, 4097, 8, "borrows 4097 bytes");
  check(168, (digested / 4096 + 1) * 4096, 8, "borrows");
  check(168, ~std::uint64_t{0}, 8, "borrows");
  check(168, std::uint64_t{1} << 63U, 8, "borrows");
  // A smaller number is sound by itself, of a whole image; the manifest says another.
  const auto fewer = test::with_trailer_field(image.memory, 168, 4096, 8);
  const auto info = verify_image(fewer.bytes());
  CHECK_THAT(test::refusal([&] { (void)borrowed_parts(fewer.bytes(), info); }),
             Contains("its manifest says that 20480 bytes are borrowed"));
  // One that borrows nothing says 0 there.
  const auto plain = test::make_image(test::borrowing_state());
  const auto more = test::with_trailer_field(plain.memory, 168, 4096, 8);
  CHECK_THAT(test::refusal([&] { (void)verify_image(more.bytes()); }),
             Contains("version 1 cannot"));
}

TEST_CASE("a manifest whose borrowed parts make no sense is refused with what is wrong") {
  const auto refused = [](const std::string& from, const std::string& to, const char* why) {
    const auto image = test::borrowing_image();
    const auto bytes =
        test::with_structure(image, [&](std::string& json) { test::replace(json, from, to); });
    INFO(from << " -> " << to);
    CHECK_THAT(test::refusal([&] { (void)borrowed_parts(bytes.bytes(), image.info); }),
               Contains(why));
    CHECK_THROWS_WITH(decode_image(bytes.bytes(), nullptr), Contains(why));
  };
  const std::string all = "[[0,0,13248],[3,13248,17344]]";
  refused(all, "[]", "empty list");
  refused(all, "7", "not a list");
  refused(all, "[[0,0]]", "not [rank, begin, end]");
  refused(all, "[[-1,0,13248],[3,13248,17344]]", "not a number");
  refused(all, "[[3,0,13248],[3,13248,17344]]", "do not ascend");
  refused(all, "[[3,0,13248],[0,13248,17344]]", "do not ascend");
  refused(all, "[[4294967296,0,13248]]", "do not ascend");
  refused(all, "[[0,64,13248],[3,13248,17344]]", "not behind");
  refused(all, "[[0,0,13248],[3,13184,17344]]", "not behind");
  refused(all, "[[0,0,0],[3,0,17344]]", "is empty");
  refused(all, "[[0,0,13248],[3,13248,13248]]", "is empty");
  refused(all, "[[0,0,18446744073709551615]]", "beyond the storages");
  refused(all, "[[0,0,13248],[3,13248,90000]]", "beyond the storages");
  refused(all, "[[0,0,13248]]", "in no rank's part");
  refused(all, "[[0,0,5000],[3,13248,17344]]", "in no rank's part");
  refused(all, "[[0,0,13248],[3,13248,17343]]", "in no rank's part");
  refused(all, "[[0,0,13248],[3,13248,17400]]", "begin and end with storages");
  refused("\\\"shared\\\":" + all + ",", "", "belongs to version 2");
  refused("\\\"format\\\":2", "\\\"format\\\":1", "belongs to version 2");
  refused("\\\"format\\\":2", "\\\"format\\\":3", "versions 1 and 2");
  refused("\\\"block_bytes\\\":4096", "\\\"block_bytes\\\":9223372036854775808", "beyond");
}

TEST_CASE("parts of a rank that cannot have them, and of another block size, are refused") {
  const auto image = test::borrowing_image();
  auto info = image.info;
  info.identity.rank = 0;
  CHECK_THAT(test::refusal([&] { (void)borrowed_parts(image.bytes(), info); }),
             Contains("borrows from rank 0"));
  info = image.info;
  info.identity.world_size = 3;
  CHECK_THAT(test::refusal([&] { (void)borrowed_parts(image.bytes(), info); }),
             Contains("borrows from rank 3"));
  info = image.info;
  info.block_bytes = 2048;
  CHECK_THAT(test::refusal([&] { (void)borrowed_parts(image.bytes(), info); }),
             Contains("blocks of 2048"));
  CHECK_THAT(test::refusal([&] { (void)borrowed_parts(image.bytes().first(100), image.info); }),
             Contains("within its manifest"));
}

TEST_CASE("find_ranges knows storages only, and placing refuses other sizes") {
  const auto image = test::borrowing_image();
  const auto found = find_ranges(
      image.bytes(), std::vector<std::string>{"missing", "__meshstage__.values", "last",
                                              "__meshstage__.trailer", "__meshstage__.pad.0", ""});
  for (const auto i : {0, 1, 3, 4, 5}) CHECK_FALSE(found.at(static_cast<std::size_t>(i)));
  CHECK(found.at(2)->bytes == 4096);

  const auto replica = test::replica_of(image);
  auto whole = Storage::allocate(image.info.image_bytes);
  CHECK_THROWS_AS(place_replica(image.bytes(), image.info, whole.bytes()), InvalidArgument);
  CHECK_THROWS_AS(
      place_replica(replica.bytes(), image.info, whole.bytes().first(image.info.image_bytes - 1)),
      InvalidArgument);
  const auto clear = [&](std::vector<BorrowedPart> parts) {
    clear_borrowed_padding(parts, image.info, whole.bytes());
  };
  const auto begin = image.info.manifest_bytes;
  CHECK_THROWS_AS(clear({{0, {{"x", begin - 1, 1}}}}), InvalidArgument);
  CHECK_THROWS_AS(clear({{0, {{"x", begin, 20481}}}}), InvalidArgument);
  CHECK_THROWS_AS(clear({{0, {{"x", begin + 64, 64}, {"y", begin + 100, 64}}}}), InvalidArgument);
}

TEST_CASE("a digest of ranges is the same over different layouts, and tells what differs") {
  const auto state = test::borrowing_state();
  const auto image = test::borrowing_image();
  const auto plain = test::make_image(state, 8192);
  const std::vector<std::string> names{"both.a", "both.b", "last", "own"};
  const auto ranges_in = [&](std::span<const std::byte> bytes) {
    std::vector<ImageRange> ranges;
    for (const auto& range : find_ranges(bytes, names)) ranges.push_back(range.value());
    return ranges;
  };
  const auto ranges = ranges_in(image.bytes());
  REQUIRE(ranges != ranges_in(plain.bytes()));
  const auto digest = digest_ranges(image.bytes(), ranges);
  CHECK(digest == digest_ranges(plain.bytes(), ranges_in(plain.bytes())));
  std::vector<std::byte> joined;
  for (const auto& r : ranges) {
    const auto part = image.bytes().subspan(r.offset, r.bytes);
    joined.insert(joined.end(), part.begin(), part.end());
  }
  CHECK(digest == digest128(joined));
  auto turned = ranges;
  std::swap(turned[0], turned[1]);
  CHECK(digest != digest_ranges(image.bytes(), turned));

  for (std::size_t i = 0; i < ranges.size(); ++i) {
    auto& byte = image.bytes()[ranges[i].offset + ranges[i].bytes - 1];
    byte ^= std::byte{1};
    CHECK(digest != digest_ranges(image.bytes(), ranges));
    byte ^= std::byte{1};
  }
  CHECK(digest == digest_ranges(image.bytes(), ranges));

  CHECK(digest_ranges(image.bytes(), {}) == digest128({}));
  const auto size = image.bytes().size();
  for (const ImageRange beyond :
       {ImageRange{size - 1, 2}, ImageRange{size + 1, 0}, ImageRange{1, ~std::uint64_t{0}}}) {
    const std::vector<ImageRange> list{{0, 64}, beyond};
    CHECK_THROWS_AS(digest_ranges(image.bytes(), list), InvalidArgument);
  }
}
