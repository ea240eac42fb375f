// How an image is cut into pieces.
#include <algorithm>
#include <random>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/transfer/pieces.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::transfer;

TEST_CASE("the pieces are what travels, each byte once") {
  std::mt19937_64 random(7);
  for (int round = 0; round < 500; ++round) {
    Shape shape;
    shape.manifest_bytes = random() % 9000;
    shape.image_bytes = shape.manifest_bytes + random() % 40000;
    shape.block_bytes = 1 + random() % 9000;
    shape.with_manifest = round % 2 == 0;
    if (round % 3 != 0) {
      // Whole blocks of this size, or of another that the image was made with.
      const auto data = shape.image_bytes - shape.manifest_bytes;
      const auto block = round % 3 == 1 ? shape.block_bytes : 1 + random() % 9000;
      shape.borrowed_bytes = random() % (data / block + 1) * block;
    }
    std::vector<int> times(shape.image_bytes, 0);
    std::uint64_t before = 0;
    for (const auto& piece : pieces_of(shape)) {
      CHECK(piece.bytes > 0);
      CHECK(piece.bytes <= shape.block_bytes);
      CHECK(piece.offset >= before);
      before = piece.offset + piece.bytes;
      REQUIRE(before <= shape.image_bytes);
      for (std::uint64_t i = 0; i < piece.bytes; ++i) ++times[piece.offset + i];
    }
    const auto count = [&](std::uint64_t begin, std::uint64_t end, int wanted) {
      const auto from = times.begin() + static_cast<std::ptrdiff_t>(begin);
      const auto to = times.begin() + static_cast<std::ptrdiff_t>(end);
      return std::count(from, to, wanted) == to - from;
    };
    const auto gap_end = shape.manifest_bytes + shape.borrowed_bytes;
    CHECK(count(0, shape.manifest_bytes, shape.with_manifest ? 1 : 0));
    CHECK(count(shape.manifest_bytes, gap_end, 0));
    CHECK(count(gap_end, shape.image_bytes, 1));
  }
}

TEST_CASE("sizes that contradict each other are no shape") {
  const auto refuse = [](const Shape& shape) {
    CHECK_THROWS_AS(pieces_of(shape), InvalidArgument);
  };
  refuse({8192, 4096, 0});
  refuse({4096, 8192, 4096});
  refuse({kMostBytes + 1, 4096, 4096});
  refuse({8192, 4096, 4096, true, 8192});
  CHECK(pieces_of({8192, 4096, 4096, true, 4096}) == std::vector<Piece>{{0, 4096}});
}
