// An image that is proven part by part.
#include <cstdint>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

/// Three blocks of 4096 bytes and a shorter one, of which the last has the values, too.
TestImage image_of_four_blocks() {
  return make_image(Dict{{"t", Tensor::arange<float>(3 * 1024 + 100)}, {"n", 7}}, 4096);
}

}  // namespace

TEST_CASE("an image is proven as far as it is asked for, each block once") {
  const auto image = image_of_four_blocks();
  const std::uint64_t data = image.info.manifest_bytes;
  std::uint64_t bytes = 0;
  const BytesRead count = [&](std::uint64_t more) { bytes += more; };
  ImageProof proof(image.bytes(), count);
  CHECK(bytes == data);
  CHECK(proof.info() == image.info);
  CHECK(proof.image().data() == image.bytes().data());
  const auto reads = [&](std::uint64_t begin, std::uint64_t end) {
    bytes = 0;
    proof.prove(begin, end, count);
    return bytes;
  };
  CHECK(reads(0, data) == 0);
  CHECK(reads(data + 10, data + 10) == 0);
  CHECK(reads(data + 4095, data + 4096) == 4096);
  CHECK(reads(data + 4095, data + 4097) == 4096);  // the second block alone
  CHECK(reads(data, data + 8192) == 0);
  const auto rest = reads(0, image.info.image_bytes);
  CHECK(rest > 4096);
  CHECK(rest < 8192);
  CHECK_THROWS_AS(proof.prove(0, image.info.image_bytes + 1), InvalidArgument);
  CHECK_THROWS_AS(proof.prove(2, 1), InvalidArgument);
}

TEST_CASE("a byte that changed is found when its block is asked for, and not before") {
  const auto image = image_of_four_blocks();
  const std::uint64_t data = image.info.manifest_bytes;
  const std::uint64_t last = image.plan.layout().trailer_begin - 1;
  for (const std::uint64_t at : {data, data + 4095, data + 4096, data + 3 * 4096, last}) {
    INFO("byte " << at - data << " of the data section");
    image.bytes()[at] ^= std::byte{1};
    ImageProof proof(image.bytes());
    for (int again = 0; again < 2; ++again) {  // a wrong block stays wrong
      try {
        proof.prove(at, at + 1);
        FAIL("nothing was thrown");
      } catch (const CorruptData& e) {
        CHECK(e.step() == 85);
        CHECK_THAT(e.what(), Contains("does not match its digest"));
      }
    }
    const std::uint64_t other = at < data + 8192 ? last : data;
    proof.prove(other, other + 1);
    image.bytes()[at] ^= std::byte{1};
  }
  for (const std::uint64_t at :
       {std::uint64_t{20}, data - 1, last + 1, image.info.image_bytes - 1}) {
    INFO("byte " << at);
    image.bytes()[at] ^= std::byte{1};
    CHECK_THROWS_AS(ImageProof(image.bytes()), CorruptData);
    image.bytes()[at] ^= std::byte{1};
  }
}
