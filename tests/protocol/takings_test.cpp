#include "tests/protocol/takings.hpp"

#include "tests/support/explorer/promises.hpp"

// What happens to vaults when a job is started beside what is left of an older start. Each rule is
// needed: without it a run breaks a promise, which is printed.

using namespace meshstage::takings;
namespace explorer = meshstage::explorer;
using meshstage::explorer::Exploration;

namespace {

Exploration require_safe(const Bounds& bounds) { return explorer::require_safe(Model(bounds)); }

void require_needed(Bounds bounds, bool Rules::* rule) {
  bounds.rules.*rule = false;
  explorer::require_broken(Model(bounds));
}

Bounds two_ranks() {
  Bounds bounds;
  bounds.unanswered = 1;
  bounds.kills = 1;
  return bounds;
}

/// One rank, three launches: one is killed on the way.
Bounds three_launches() {
  Bounds bounds;
  bounds.ranks = 1;
  bounds.launches = 3;
  bounds.kills = 2;
  bounds.unanswered = 1;
  return bounds;
}

Bounds elsewhere() {
  Bounds bounds;
  bounds.elsewhere = true;
  bounds.unanswered = 1;
  return bounds;
}

}  // namespace

TEST_CASE("a start beside processes that are stopped or killed anywhere: two ranks") {
  const Exploration result = require_safe(two_ranks());
  REQUIRE(result.seen.size() == 2);
}
TEST_CASE(
    "a start beside processes that are stopped or killed anywhere: one rank, three launches") {
  const Exploration result = require_safe(three_launches());
  REQUIRE(result.seen.size() == 2);
}
TEST_CASE("a start on other hosts") { require_safe(elsewhere()); }

TEST_CASE("without the root's look two jobs acknowledge") {
  require_needed(elsewhere(), &Rules::look);
}
TEST_CASE("without a look after the last yes two jobs acknowledge") {
  require_needed(elsewhere(), &Rules::look_after_last_yes);
}
TEST_CASE("without compare-and-swap an image is torn") {
  require_needed(two_ranks(), &Rules::swap);
}
TEST_CASE("without the epoch that the owner took an image is torn") {
  require_needed(two_ranks(), &Rules::owned_epoch);
}
TEST_CASE("without raising the epoch before the headers are read an image is torn") {
  require_needed(two_ranks(), &Rules::raise_first);
}
TEST_CASE("without reading a locked vault a complete step is lost") {
  require_needed(two_ranks(), &Rules::locked_is_read);
}
TEST_CASE("without slots of its own beside a locked vault an image is torn") {
  require_needed(two_ranks(), &Rules::locked_is_not_written);
}
TEST_CASE("without adopting free incarnations a complete step is lost") {
  require_needed(three_launches(), &Rules::free_is_adopted);
}
