#include "tests/support/catch.hpp"
#include "tests/support/explorer/require_safe.hpp"
#include "tests/support/sanitized.hpp"

// Trainers that come back as many as before, and cut their states otherwise: the newest step is
// assembled from files, wherever a rank dies meanwhile. Each of `mismatches` is one rank that finds
// another cut in one recovery. So some ranks of a recovery find one and others none, and a later
// recovery finds it again, or not: then the program has the former cut again.

using namespace meshstage;
using namespace meshstage::explorer;

namespace {

Bounds cut_anew(int world, int steps, int mismatches) {
  Bounds bounds = ranks(world, steps);
  bounds.any_cut = true;
  bounds.mismatches = mismatches;
  return bounds;
}

}  // namespace

TEST_CASE("one rank: another cut, crashes, a failure and files") {
  Bounds bounds = cut_anew(1, 3, 2);
  bounds.crashes = 2;
  bounds.local_failures = 1;
  bounds.disk = bounds.finish = true;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut, and two crashes") {
  Bounds bounds = cut_anew(2, 1, meshstage::test::kSanitized ? 1 : 2);
  bounds.crashes = 2;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut of a later step, and a crash") {
  Bounds bounds = cut_anew(2, 2, meshstage::test::kSanitized ? 1 : 2);
  bounds.crashes = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut, a crash and a lost host") {
  Bounds bounds = cut_anew(2, 1, meshstage::test::kSanitized ? 1 : 2);
  bounds.crashes = bounds.host_losses = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut, a lost message and a timeout") {
  Bounds bounds = cut_anew(2, 1, 1);
  bounds.crashes = bounds.lost_messages = bounds.timeouts = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut, and an image that rots") {
  Bounds bounds = cut_anew(2, 1, 1);
  bounds.crashes = bounds.flips = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut, more is lost than is survived, with files") {
  Bounds bounds = cut_anew(2, 1, 1);
  bounds.losses_beyond = 2;
  bounds.disk = true;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut, a restart on other hosts with disks of their own") {
  Bounds bounds = cut_anew(2, 1, meshstage::test::kSanitized ? 1 : 2);
  bounds.reseats = bounds.crashes = 1;
  bounds.disk = bounds.local_disks = true;
  require_safe(bounds);
}

TEST_CASE("two ranks that lend to each other's replicas: another cut, a crash and a lost host") {
  Bounds bounds = cut_anew(2, 1, 1);
  bounds.lenders = {{1}, {0}};
  bounds.crashes = bounds.host_losses = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut, a trainer that hangs, one that has waited, a skipped step") {
  Bounds bounds = cut_anew(2, 1, 1);
  bounds.hangs = bounds.waits = bounds.skips = 1;
  bounds.crashes = meshstage::test::kSanitized ? 0 : 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut, and a stopped process that goes on") {
  Bounds bounds = cut_anew(2, 1, 1);
  bounds.zombies = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: another cut of an old job's step that is taken, and a crash") {
  Bounds bounds = cut_anew(2, 1, 1);
  bounds.old_job = bounds.old_memory = true;
  bounds.crashes = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks that write no files: another cut, a crash, a lost host and a failure") {
  Bounds bounds = cut_anew(2, 1, meshstage::test::kSanitized ? 1 : 2);
  bounds.old_kept = true;
  bounds.crashes = bounds.host_losses = 1;
  bounds.local_failures = meshstage::test::kSanitized ? 0 : 1;
  require_safe(bounds);
}

TEST_CASE("two ranks that write no files: another cut of an old job's step, and a crash") {
  Bounds bounds = cut_anew(2, 1, 1);
  bounds.old_job = bounds.old_memory = bounds.old_apart = bounds.old_kept = true;
  bounds.crashes = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: another cut, and a crash") {
  Bounds bounds = cut_anew(3, 1, meshstage::test::kSanitized ? 1 : 2);
  bounds.crashes = 1;
  require_safe(bounds);
}

TEST_CASE("random runs of ranks with other cuts keep every promise") {
  for (const int world : {2, 3, 4, 7, 16}) {
    Bounds bounds = cut_anew(world, 3, 2 * world);
    bounds.crashes = 4;
    bounds.host_losses = bounds.reseats = bounds.lost_messages = bounds.timeouts = 1;
    bounds.skips = bounds.local_failures = 1;
    bounds.disk = bounds.finish = true;
    bounds.local_disks = world == 4;
    require_safe_walks(bounds, static_cast<std::uint64_t>(world),
                       meshstage::test::kSanitized ? 20 : 300);
  }
}
