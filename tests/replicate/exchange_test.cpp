// Between the protocol's messages about images and the transfers.
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/replicate/exchange.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::exchange;

TEST_CASE("a stream start says the shape that it was made for") {
  const Shape shape{4096 * 21, 4096, 8192, false, 16384, 2};
  const auto start = stream_start(3, {5, 17}, shape, Content::kLent);
  CHECK(shape_of(start) == shape);
  CHECK(start.owner == 3);
  CHECK(start.id == ImageId{5, 17});
  CHECK(start.content == Content::kLent);
  CHECK(stream_start(0, {1, 1}, shape).content == Content::kImage);
}

TEST_CASE("what is borrowed from one lender can be asked for in one message") {
  std::vector<std::string> names;
  for (int i = 0; i < 300'000; ++i) names.push_back(std::string(40, 'n') + std::to_string(i));
  auto shuffled = names;
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937_64(3));
  const auto fit = names_for_a_want(shuffled);
  CHECK(fit == names_for_a_want(names));  // in whatever order the two ranks name them
  CHECK(fit.size() < names.size());
  protocol::Want want{{3, 17}, {}};
  for (const auto& name : fit) want.storages.push_back({name, 4096});
  const auto bytes = protocol::with_digest(protocol::encode({}, 0, {3, want})).size();
  CHECK(bytes <= ControlLinks::kMaxMessageBytes);
  CHECK(bytes + 8192 > ControlLinks::kMaxMessageBytes);
  CHECK(names_for_a_want({"b", "a"}) == std::vector<std::string>{"a", "b"});
}
