// An old job's images that stay in memory, beside the slots of the ranks that go on from them.
#include "tests/support/catch.hpp"
#include "tests/support/explorer/require_safe.hpp"

using namespace meshstage;
using namespace meshstage::explorer;

namespace {

Bounds kept(int world) {
  Bounds bounds = ranks(world, 1);
  bounds.old_job = bounds.old_memory = bounds.old_apart = bounds.old_kept = true;
  return bounds;
}

}  // namespace

TEST_CASE("one, two and three ranks: an old job's step is kept in memory; crashes") {
  const int world = GENERATE(1, 2, 3);
  Bounds bounds = kept(world);
  bounds.crashes = world == 3 ? 1 : 2;
  require_safe(bounds, 50);
}

TEST_CASE("two and three ranks: an old job's step is kept in memory; a lost host and a crash") {
  const int world = GENERATE(2, 3);
  Bounds bounds = kept(world);
  bounds.host_losses = 1;
  bounds.crashes = world == 2 ? 1 : 0;
  require_safe(bounds);
}

TEST_CASE("two ranks: an old job's step is kept in memory; a lost message, a failure, a timeout") {
  Bounds bounds = kept(2);
  bounds.lost_messages = bounds.local_failures = bounds.timeouts = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: an old job's step is kept in memory; a stopped process goes on") {
  Bounds bounds = kept(2);
  bounds.zombies = 1;
  require_safe(bounds);
}
