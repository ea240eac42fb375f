// How an image is cut into pieces, and what the messages about it refuse.
#include <random>

#include <meshstage/core/replicate/exchange.hpp>

#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::exchange;
using Catch::Matchers::Contains;

namespace {

constexpr std::uint64_t kImage = 4096 * 21;
constexpr std::uint64_t kManifest = 4096;

Shape shape(std::vector<Piece> present = {}, bool with_manifest = false) {
  return {kImage, kManifest, 8192, with_manifest, std::move(present)};
}

}  // namespace

TEST_CASE("pieces and what is present make up the image, without overlap") {
  std::mt19937_64 random(7);
  for (int round = 0; round < 500; ++round) {
    std::vector<Piece> present;
    std::uint64_t at = kManifest;
    while (at + 3000 < kImage - 4096) {
      at += random() % 9000;
      const std::uint64_t bytes = 1 + random() % 20000;
      if (at + bytes > kImage - 4096) break;
      present.push_back({at, bytes});
      at += bytes;
    }
    const auto cut = shape(present, round % 2 == 0);
    std::vector<int> times(kImage, 0);
    std::uint64_t before = 0;
    for (const auto& piece : pieces_of(cut)) {
      CHECK(piece.bytes > 0);
      CHECK(piece.bytes <= cut.block_bytes);
      CHECK(piece.offset >= before);
      before = piece.offset + piece.bytes;
      for (std::uint64_t i = 0; i < piece.bytes; ++i) ++times[piece.offset + i];
    }
    for (const auto& piece : present) {
      for (std::uint64_t i = 0; i < piece.bytes; ++i) ++times[piece.offset + i];
    }
    const auto from = times.begin() + (cut.with_manifest ? 0 : kManifest);
    CHECK(std::count(from, times.end(), 1) == times.end() - from);
  }
}

TEST_CASE("ranges that do not fit an image are refused") {
  const auto at = [](std::uint64_t offset, std::uint64_t bytes) {
    return fits({{kManifest, 64}, {offset, bytes}}, shape());
  };
  CHECK(at(8192, 4096));
  CHECK(at(kManifest + 64, 64));
  CHECK_FALSE(at(kManifest + 63, 64));       // overlaps the one before
  CHECK_FALSE(at(8192, 0));                  // empty
  CHECK_FALSE(at(kImage - 64, 64));          // the trailer must travel
  CHECK_FALSE(at(8192, kImage));             // beyond
  CHECK_FALSE(at(8192, UINT64_MAX - 8191));  // wraps
  CHECK_FALSE(at(UINT64_MAX - 63, 64));
  CHECK_FALSE(fits({{0, 64}}, shape()));  // in the manifest
  CHECK_FALSE(fits(std::vector<Piece>(kMostPresent + 1, Piece{kManifest, 0}), shape()));
  CHECK_THROWS_AS(pieces_of(shape({{0, 64}})), InvalidArgument);
}

TEST_CASE("a stream start and a list of present ranges survive the wire; damage is named") {
  const StreamStart start{3, 1, {3, 17}, shape({{8192, 64}, {9000, 5}}, true)};
  CHECK(decode_stream_start(encode(start), 1, 2) == start);
  const Present present{3, {3, 17}, {{8192, 64}, {9000, 5}}};
  CHECK(decode_present(encode(present), 1) == present);
  CHECK(is_present(encode(present)));
  CHECK_FALSE(is_present(encode(start)));
  CHECK_FALSE(is_stream_start(encode(present)));

  const auto why = [](std::vector<std::byte> bytes) -> std::string {
    try {
      if (is_present(bytes)) {
        (void)decode_present(bytes, 1);
      } else {
        (void)decode_stream_start(bytes, 1, 2);
      }
    } catch (const CorruptData& e) {
      CHECK(e.rank() == 1);
      return e.what();
    }
    return "accepted";
  };
  for (const auto& bytes : {encode(start), encode(present)}) {
    for (std::size_t n = 4; n < bytes.size(); ++n) {
      INFO(n);
      CHECK(why({bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n)}) != "accepted");
    }
    auto longer = bytes;
    longer.push_back({});
    CHECK_THAT(why(longer), Contains("2 ranges in 33 bytes"));
    auto other = bytes;
    other[4] = std::byte{9};
    CHECK_THAT(why(other), Contains("version 9, this library reads 2"));
  }
  auto huge = encode(present);
  huge[32 + 7] = std::byte{0xFF};
  CHECK_THAT(why(huge), Contains("ranges in 32 bytes"));
  auto unfit = start;
  unfit.shape.present[0].offset = 0;
  CHECK_THAT(why(encode(unfit)), Contains("does not fit"));
}
