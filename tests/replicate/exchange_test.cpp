// What the messages about an image refuse.
#include <algorithm>
#include <cstring>

#include <meshstage/core/replicate/exchange.hpp>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/protocol/codec.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::exchange;
using Catch::Matchers::Contains;

namespace {

using Bytes = std::vector<std::byte>;
constexpr std::uint64_t kMost = std::uint64_t{1} << 56U;

StreamStart any_start() {
  return {3, 1, {3, 17}, {4096 * 21, 4096, 8192, true, 16384, 2}, Content::kLent};
}

Want any_want() {
  return {4, {3, 17}, {{"model.w%2E0", 5000}, {"", 1}, {std::string("\0\xFFx", 3), kMost / 2}}};
}

/// What the decoders refuse the bytes with.
std::string start_refusal(const Bytes& bytes) {
  try {
    (void)decode_stream_start(bytes, 1, 2);
  } catch (const CorruptData& e) {
    CHECK(e.rank() == 1);
    return e.what();
  }
  return "accepted";
}
std::string want_refusal(const Bytes& bytes) {
  try {
    (void)decode_want(bytes, 1);
  } catch (const CorruptData& e) {
    CHECK(e.rank() == 1);
    return e.what();
  }
  return "accepted";
}

Bytes with(Bytes bytes, std::size_t at, std::uint64_t value, std::size_t size = 8) {
  std::memcpy(bytes.data() + at, &value, size);
  return bytes;
}

}  // namespace

TEST_CASE("sizes that contradict each other are refused") {
  const auto refused = [](Shape shape) {
    auto start = any_start();
    start.shape = shape;
    return start_refusal(encode(start));
  };
  CHECK_THAT(refused({8192, 4096, 0}), Contains("in blocks of 0 makes no sense"));
  CHECK_THAT(refused({4096, 8192, 4096}), Contains("manifest of 8192"));
  CHECK_THAT(refused({kMost + 1, 4096, 4096}), Contains("makes no sense"));
  CHECK_THAT(refused({~std::uint64_t{0}, 4096, 4096}), Contains("makes no sense"));
  CHECK_THAT(refused({8192, 4096, 4096, true, 8192}), Contains("8192 borrowed bytes in an image"));
  CHECK_THAT(refused({8192, 4096, 4096, true, ~std::uint64_t{0} - 4095}),
             Contains("borrowed bytes"));
}

TEST_CASE("a stream start and a want survive the wire") {
  const auto start = any_start();
  CHECK(decode_stream_start(encode(start), 1, 2) == start);
  const StreamStart plain{1, 0, {1, 1}, {8192, 4096, 4096, false}};
  CHECK(decode_stream_start(encode(plain), 1, 2) == plain);
  CHECK(encode(start).size() == 96);
  CHECK(decode_want(encode(any_want()), 1) == any_want());
  const Want nothing{1, {1, 1}, {}};
  CHECK(decode_want(encode(nothing), 1) == nothing);
  CHECK(encode(nothing).size() == 40);

  CHECK(is_stream_start(encode(start)));
  CHECK_FALSE(is_stream_start(encode(nothing)));
  CHECK(is_want(encode(nothing)));
  CHECK_FALSE(is_want(encode(start)));
  CHECK_FALSE(is_want({}));
  CHECK_FALSE(is_stream_start(Bytes(3)));
}

TEST_CASE("a message that is cut anywhere or longer, or of another version, is refused") {
  const auto check = [](const Bytes& bytes, const auto& why, const char* least) {
    REQUIRE(why(bytes) == "accepted");
    for (std::size_t n = 0; n < bytes.size(); ++n) {
      INFO(n);
      CHECK(why({bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n)}) != "accepted");
    }
    auto longer = bytes;
    longer.push_back({});
    CHECK_THAT(why(longer), Contains("length: 1 bytes too many"));
    CHECK_THAT(why(Bytes(bytes.begin(), bytes.begin() + 39)), Contains(least));
    CHECK_THAT(why(with(bytes, 4, 2, 2)), Contains("version 2, this library reads 3"));
    CHECK_THAT(why(with(bytes, 4, 4, 2)), Contains("version 4, this library reads 3"));
    CHECK_THAT(why(with(bytes, 6, 1, 2)), Contains("reserved field is not 0"));
    CHECK(why(with(bytes, 0, 0, 4)) != "accepted");
  };
  check(encode(any_start()), start_refusal, "length 39, 96 at least");
  check(encode(any_want()), want_refusal, "length 39, 40 at least");
}

TEST_CASE("a field that makes no sense is named") {
  const auto start = encode(any_start());
  CHECK_THAT(start_refusal(with(start, 16, 2)), Contains("owner 2 of 2 ranks"));
  CHECK_THAT(start_refusal(with(start, 16, ~std::uint64_t{0})), Contains("of 2 ranks"));
  CHECK_THAT(start_refusal(with(start, 64, 2)), Contains("with-manifest is 2"));
  CHECK_THAT(start_refusal(with(start, 80, std::uint64_t{1} << 32U)), Contains("loans 4294967296"));
  CHECK_THAT(start_refusal(with(start, 88, 2)), Contains("content is 2"));

  const auto want = encode(any_want());  // count at 32; bytes, length and name from 40
  CHECK_THAT(want_refusal(with(want, 32, 1000)), Contains("1000 storages in"));
  CHECK_THAT(want_refusal(with(want, 32, ~std::uint64_t{0})), Contains("storages in"));
  const auto named = encode({1, {1, 1}, {{std::string(40, 'n'), 1}}});
  CHECK_THAT(want_refusal(with(named, 32, 2)), Contains("it ends within storage 1"));
  CHECK_THAT(want_refusal(with(want, 32, 2)), Contains("bytes too many"));
  CHECK_THAT(want_refusal(with(want, 40, 0)), Contains("storage 0 of 0 bytes"));
  CHECK_THAT(want_refusal(with(want, 40, kMost + 1)), Contains("storage 0 of"));
  CHECK_THAT(want_refusal(with(want, 40, kMost / 2)), Contains("storage 2 of"));  // all together
  CHECK_THAT(want_refusal(with(want, 40, ~std::uint64_t{0})), Contains("storage 0 of"));
  CHECK_THAT(want_refusal(with(want, 48, 1000)), Contains("a name of 1000"));
  CHECK_THAT(want_refusal(with(want, 48, ~std::uint64_t{0})), Contains("a name of"));
}

TEST_CASE("what is borrowed from one lender can be asked for in one message") {
  std::vector<std::string> names;
  for (int i = 0; i < 300'000; ++i) names.push_back(std::string(40, 'n') + std::to_string(i));
  auto shuffled = names;
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937_64(3));
  const auto fit = names_for_a_want(shuffled);
  CHECK(fit == names_for_a_want(names));  // in whatever order the two ranks name them
  CHECK(fit.size() < names.size());
  Want want{3, {3, 17}, {}};
  for (const auto& name : fit) want.storages.push_back({name, 4096});
  const auto bytes = protocol::with_digest(encode(want)).size();
  CHECK(bytes <= ControlLinks::kMaxMessageBytes);
  CHECK(bytes + 8192 > ControlLinks::kMaxMessageBytes);
  CHECK(names_for_a_want({"b", "a"}) == std::vector<std::string>{"a", "b"});
}
