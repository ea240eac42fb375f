#include "tests/protocol/launches.hpp"

#include "tests/support/explorer/promises.hpp"

// Which start of a job owns it. Each rule is needed: without it a run breaks a promise, which is
// printed.

using namespace meshstage::launches;
namespace explorer = meshstage::explorer;
using meshstage::explorer::Exploration;

namespace {

Exploration require_safe(const Bounds& bounds) { return explorer::require_safe(Model(bounds)); }

void require_needed(Bounds bounds, bool Rules::* rule) {
  bounds.rules.*rule = false;
  explorer::require_broken(Model(bounds));
}

Bounds beside_a_healthy_job() { return {}; }
Bounds after_a_job(int stops, int kills, int impatient = 0) {
  Bounds bounds;
  bounds.launches = 3;
  bounds.impatient = impatient;
  bounds.stops = stops;
  bounds.kills = kills;
  return bounds;
}
Bounds hung() {
  Bounds bounds;
  bounds.stops = 2;
  return bounds;
}
Bounds half_hung() {
  Bounds bounds;
  bounds.stops = 1;
  return bounds;
}
Bounds died_while_forming() {
  Bounds bounds;
  bounds.forming = true;
  return bounds;
}
Bounds two_starts() {
  Bounds bounds;
  bounds.launches = 3;
  bounds.forming = true;
  return bounds;
}

}  // namespace

TEST_CASE("a start beside a healthy job is refused, and touches nothing") {
  const Exploration result = require_safe(beside_a_healthy_job());
  REQUIRE(result.seen == std::set<std::string>{"a newer start is refused"});
}
TEST_CASE("a job that hangs, whole or in part, is replaced") {
  REQUIRE(require_safe(hung()).seen.contains("a newer start runs"));
  REQUIRE(require_safe(half_hung()).seen.contains("a newer start runs"));
}
TEST_CASE("two starts at once, after a job that died while it formed: one of them runs") {
  REQUIRE(require_safe(two_starts()).seen.contains("a newer start runs"));
}
TEST_CASE("a start beside a job of which a rank is killed") {
  Bounds bounds = after_a_job(0, 1);
  bounds.launches = 2;
  (void)require_safe(bounds);
}
TEST_CASE("two starts beside a job of which ranks are stopped or killed") {
  (void)require_safe(after_a_job(1, 0));
  (void)require_safe(after_a_job(0, 1));
  (void)require_safe(after_a_job(2, 0, 1));
}
TEST_CASE("two starts beside a job of which a rank is stopped and one killed", "[.bounds]") {
  (void)require_safe(after_a_job(1, 1));
}
TEST_CASE("a job of another number of ranks that died while it formed is replaced") {
  REQUIRE(require_safe(died_while_forming()).seen.contains("a newer start runs"));
}

TEST_CASE("without launches a generation has ranks of two starts") {
  require_needed(two_starts(), &Rules::launch_owns);
}
TEST_CASE("without a claim before the vault is touched a healthy job is disturbed") {
  require_needed(beside_a_healthy_job(), &Rules::claim_first);
}
TEST_CASE("without renewals of every rank a job that hangs in part is never replaced") {
  require_needed(half_hung(), &Rules::every_rank);
}
TEST_CASE("without two renewals a job that hangs is taken for healthy") {
  require_needed(hung(), &Rules::twice);
}
TEST_CASE("without the claim's number as epoch an older start takes a newer one's vault") {
  require_needed(after_a_job(2, 0, 1), &Rules::claim_is_epoch);
}
TEST_CASE("without waiting for survivors a start and the job end because of one another") {
  Bounds bounds = after_a_job(0, 1);
  bounds.launches = 2;
  require_needed(bounds, &Rules::survivors_first);
}
TEST_CASE("without an end of launches that died while forming nobody comes in") {
  require_needed(died_while_forming(), &Rules::lost_forming);
}
