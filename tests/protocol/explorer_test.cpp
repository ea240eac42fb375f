#include "tests/support/catch.hpp"
#include "tests/support/explorer/require_safe.hpp"
#include "tests/support/sanitized.hpp"

// The real transition function, run through everything that can happen within these bounds. Larger
// ones, run once, are recorded in core/protocol/PROTOCOL.md with their commands.

using namespace meshstage;
using namespace meshstage::explorer;

TEST_CASE("one rank: crashes, failures, a structure change, all memory lost, disk and finish") {
  Bounds bounds = ranks(1, 3);
  bounds.crashes = 2;
  bounds.local_failures = 1;
  bounds.mismatches = 1;
  bounds.disk = true;
  bounds.losses_beyond = 2;
  bounds.finish = true;
  require_safe(bounds);
}

TEST_CASE("one rank: timeouts, a failure, a skipped step, a crash") {
  Bounds bounds = ranks(1, 4);
  bounds.timeouts = 2;
  bounds.skips = 1;
  bounds.crashes = bounds.local_failures = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: two crashes and a lost host") {
  Bounds bounds = ranks(2, 2);
  bounds.crashes = meshstage::test::kSanitized ? 1 : 2;
  bounds.host_losses = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: a timeout and a crash") {
  Bounds bounds = ranks(2, 2);
  bounds.crashes = 1;
  bounds.timeouts = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: lost messages and a crash") {
  Bounds bounds = ranks(2, 2);
  bounds.lost_messages = meshstage::test::kSanitized ? 1 : 2;
  bounds.crashes = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: a second death while the first is being recovered from") {
  Bounds bounds = ranks(2, 1);
  bounds.crashes = meshstage::test::kSanitized ? 2 : 3;
  bounds.lost_messages = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: local failures and a skipped step") {
  Bounds bounds = ranks(2, meshstage::test::kSanitized ? 2 : 3);
  bounds.local_failures = 1;
  bounds.skips = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: a Store that does not answer, and a crash") {
  Bounds bounds = ranks(2, 2);
  bounds.unanswered = 2;
  bounds.crashes = meshstage::test::kSanitized ? 0 : 1;
  require_safe(bounds);
}

// Slow is not dead, but a rank for which the others wait shows: by its own word (rule 15).

TEST_CASE("two ranks: a trainer that hangs, and one that has waited early; a crash") {
  Bounds bounds = ranks(2, 1);
  bounds.hangs = bounds.waits = 1;
  bounds.crashes = meshstage::test::kSanitized ? 0 : 1;
  require_safe(bounds);
  bounds.steps = 2;
  bounds.crashes = 0;
  require_safe(bounds);
}

TEST_CASE("two ranks: a trainer that hangs in recover() or later, a structure that differs") {
  Bounds bounds = ranks(2, 1);
  bounds.hangs = bounds.waits = bounds.mismatches = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: a trainer that hangs, a skipped step and a lost message") {
  Bounds bounds = ranks(2, 1);
  bounds.hangs = bounds.waits = bounds.skips = bounds.lost_messages = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a trainer that hangs") {
  Bounds bounds = ranks(3, 1);
  bounds.hangs = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: a disk that takes long and one that hangs, one that has waited; a crash") {
  Bounds bounds = ranks(2, 1);
  bounds.slow_disks = bounds.stuck_disks = bounds.waits = 1;
  bounds.crashes = meshstage::test::kSanitized ? 0 : 1;
  bounds.disk = true;
  require_safe(bounds);
}

TEST_CASE("two ranks: a structure that differs after a crash") {
  Bounds bounds = ranks(2, 2);
  bounds.crashes = 1;
  bounds.mismatches = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: an image that rots, and a crash") {
  Bounds bounds = ranks(2, 2);
  bounds.crashes = 1;
  bounds.flips = 1;
  require_safe(bounds);
}

TEST_CASE("two and three ranks: an old job's step on disk, a crash and a lost host") {
  const int world = GENERATE(2, 3);
  Bounds bounds = ranks(world, world == 2 ? 2 : 1);
  bounds.old_job = true;
  bounds.old_unclaimed = GENERATE(false, true);
  bounds.crashes = 1;
  bounds.host_losses = world == 2 ? 1 : 0;
  require_safe(bounds);
}

TEST_CASE("two and three ranks: an old job's newest step in memory, crashes, a lost host or rot") {
  const int world = GENERATE(2, 3);
  const bool rot = GENERATE(false, true);
  Bounds bounds = ranks(world, 1);
  bounds.old_job = bounds.old_memory = true;
  bounds.crashes = world == 2 ? 2 : 0;
  bounds.host_losses = rot ? 0 : 1;
  bounds.flips = rot ? 1 : 0;
  require_safe(bounds);
}

TEST_CASE("two and three ranks: an old job's newest step in memory, hosts with their own disks") {
  const int world = GENERATE(2, 3);
  const bool lost = GENERATE(false, true);
  Bounds bounds = ranks(world, 1);
  bounds.old_job = bounds.old_memory = bounds.old_apart = true;
  bounds.crashes = lost ? 1 : 2;
  bounds.host_losses = lost ? 1 : 0;
  if (world == 3) --bounds.crashes;
  require_safe(bounds);
}

TEST_CASE(
    "two and three ranks: an old job's newest step in memory, and on disk with a damaged file") {
  const int world = GENERATE(2, 3);
  Bounds bounds = ranks(world, 1);
  bounds.old_job = bounds.old_memory = bounds.old_rot = true;
  bounds.old_unclaimed = GENERATE(false, true);
  bounds.crashes = world == 2 ? 2 : 1;
  bounds.host_losses = world == 2 ? 1 : 0;
  require_safe(bounds);
}

TEST_CASE("two ranks: a stopped process goes on after its replacement joined") {
  Bounds bounds = ranks(2, meshstage::test::kSanitized ? 1 : 2);
  bounds.zombies = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: more hosts are lost than is survived, with files") {
  Bounds bounds = ranks(2, meshstage::test::kSanitized ? 1 : 2);
  bounds.losses_beyond = 2;
  bounds.disk = true;
  require_safe(bounds);
}

TEST_CASE("two and three ranks: some finish before they have staged what others stage; a crash") {
  const int world = GENERATE(2, 3);
  Bounds bounds = ranks(world, 2);
  bounds.early_ends = world - 1;
  bounds.crashes = world == 2 ? 1 : 0;
  bounds.finish = true;
  require_safe(bounds);
}

TEST_CASE("two ranks: messages that do not hold all claims, with files; two crashes") {
  Bounds bounds = ranks(2, meshstage::test::kSanitized ? 1 : 2);
  bounds.claims = GENERATE(1, 2, 3);
  bounds.crashes = 2;
  bounds.losses_beyond = 1;
  bounds.disk = true;
  require_safe(bounds);
}

// What did not fit a message is asked for: the recovery gives up only where one step does not fit.

TEST_CASE("two and three ranks: messages that hold one step's claims, and a crash") {
  const int world = GENERATE(2, 3);
  Bounds bounds = ranks(world, meshstage::test::kSanitized && world == 3 ? 1 : 2);
  bounds.claims = 2;
  bounds.crashes = 1;
  bounds.local_failures = world == 2 ? 1 : 0;
  require_safe(bounds);
}

TEST_CASE("two ranks that lend to each other: messages that hold one step's claims, and a crash") {
  Bounds bounds = ranks(2, meshstage::test::kSanitized ? 1 : 2);
  bounds.lenders = {{1}, {0}};
  bounds.claims = 3;
  bounds.differences = meshstage::test::kSanitized ? 0 : 1;
  bounds.crashes = 1;
  require_safe(bounds);
}

TEST_CASE("messages that do not hold the claims to leftover files, whose oldest step is covered") {
  Bounds bounds = ranks(2, meshstage::test::kSanitized ? 2 : 3);
  bounds.lenders = {{1}, {0}};  // no rank's disk has both images of a step
  bounds.claims = 2;
  bounds.losses_beyond = 2;
  bounds.disk = true;
  require_safe(bounds);
}

TEST_CASE("two and three ranks: some wish to end, and all end with the same step; a crash") {
  const int world = GENERATE(2, 3);
  Bounds bounds = ranks(world, 2);
  bounds.ends = world == 2 ? 2 : 1;
  bounds.crashes = world == 2 ? 1 : 0;
  bounds.skips = world == 2 ? 1 : 0;
  require_safe(bounds);
}

TEST_CASE("two ranks: a crash around finish()") {
  Bounds bounds = ranks(2, 1);
  bounds.crashes = 1;
  bounds.finish = true;
  require_safe(bounds);
}

TEST_CASE("three ranks that stage nothing all become ready") {
  Bounds bounds = ranks(3, 0);
  bounds.crashes = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a crash") {
  Bounds bounds = ranks(3, meshstage::test::kSanitized ? 1 : 2);
  bounds.crashes = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a lost host") {
  Bounds bounds = ranks(3, 1);
  bounds.host_losses = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a lost message") {
  Bounds bounds = ranks(3, meshstage::test::kSanitized ? 1 : 2);
  bounds.lost_messages = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a timeout") {
  Bounds bounds = ranks(3, meshstage::test::kSanitized ? 1 : 2);
  bounds.timeouts = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a structure that differs after a crash") {
  Bounds bounds = ranks(3, 1);
  bounds.crashes = 1;
  bounds.mismatches = meshstage::test::kSanitized ? 0 : 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a second death, and a lost message, while the first is recovered from") {
  Bounds bounds = ranks(3, 0);
  bounds.crashes = 2;
  bounds.lost_messages = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a stopped process goes on after its replacement joined, and another dies") {
  Bounds bounds = ranks(3, 0);
  bounds.crashes = 1;
  bounds.zombies = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: an image that rots, and a skipped step") {
  Bounds bounds = ranks(3, 1);
  bounds.flips = bounds.skips = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks: a failure") {
  Bounds bounds = ranks(3, 1);
  bounds.local_failures = 1;
  require_safe(bounds);
}

// The job comes back with its ranks on other hosts.

TEST_CASE("two ranks: two restarts on other hosts") {
  Bounds bounds = ranks(2, 2);
  bounds.reseats = 2;
  require_safe(bounds);
}

TEST_CASE("two ranks: a restart on other hosts, and a lost host") {
  Bounds bounds = ranks(2, 2);
  bounds.scarce = GENERATE(false, true);
  bounds.reseats = bounds.host_losses = 1;
  require_safe(bounds);
  bounds.steps = 1;
  bounds.crashes = meshstage::test::kSanitized ? 0 : 1;
  require_safe(bounds);
}

TEST_CASE("two ranks: a restart on other hosts; more is lost than is survived, with files") {
  Bounds bounds = ranks(2, 1);
  bounds.reseats = bounds.losses_beyond = 1;
  bounds.disk = true;
  require_safe(bounds);
}

TEST_CASE("a disk for each host: a restart on other hosts; more is lost than is survived") {
  Bounds bounds = ranks(2, 1);
  bounds.reseats = 1;
  bounds.losses_beyond = 2;
  bounds.disk = bounds.local_disks = true;
  require_safe(bounds);
  bounds.lenders = {{1}, {0}};  // each disk has the images of its own rank alone
  require_safe(bounds);
}

TEST_CASE("two ranks that lend to each other's replicas: a restart on other hosts, a lost host") {
  Bounds bounds = ranks(2, 1);
  bounds.lenders = {{1}, {0}};
  bounds.reseats = bounds.differences = 1;
  require_safe(bounds);
  bounds.differences = 0;
  bounds.host_losses = 1;
  require_safe(bounds);
  bounds.crashes = 1;
  bounds.lenders = {{1}, {}};  // the other replica is whole, and may change its role
  require_safe(bounds);
}

TEST_CASE("three ranks: a restart on other hosts") {
  Bounds bounds = ranks(3, 1);
  bounds.scarce = true;
  bounds.reseats = 1;
  require_safe(bounds);
}

TEST_CASE("random runs of ranks that share hosts and change them keep every promise") {
  for (const int world : {4, 6, 8}) {
    Bounds bounds = ranks(world, 3);
    bounds.seats = 2;
    bounds.reseats = bounds.crashes = 3;
    bounds.host_losses = bounds.lost_messages = bounds.local_failures = bounds.timeouts = 1;
    bounds.finish = bounds.disk = true;
    bounds.local_disks = world == 6;
    bounds.scarce = world == 8;
    for (const bool borrowed : {false, true}) {  // from the next host's ranks
      for (int r = 0; borrowed && r < world; ++r) bounds.lenders.push_back({(r + 2) % world});
      bounds.differences = borrowed ? 1 : 0;
      const int runs = meshstage::test::kSanitized ? 20 : 300;
      require_safe_walks(bounds, static_cast<std::uint64_t>(world), runs);
    }
  }
}

// Replicas that borrow from another rank: from the holder itself where there are two ranks, from
// a third rank where there are three (rank r's holder is r + 1).

TEST_CASE("two ranks that lend to each other's replicas: a difference, a crash, a lost host") {
  Bounds bounds = ranks(2, 2);
  bounds.lenders = {{1}, {0}};
  bounds.differences = 1;
  bounds.crashes = meshstage::test::kSanitized ? 0 : 1;
  require_safe(bounds);
  bounds.steps = 1;
  bounds.host_losses = 1;
  require_safe(bounds);
}

TEST_CASE("two ranks that lend to each other's replicas: lost messages, rot and files") {
  Bounds bounds = ranks(2, 1);
  bounds.lenders = {{1}, {0}};
  bounds.lost_messages = bounds.flips = 1;
  bounds.crashes = meshstage::test::kSanitized ? 0 : 1;
  bounds.disk = true;
  require_safe(bounds);
}

TEST_CASE("two ranks, one of which lends to the other's replicas: more is lost than survived") {
  Bounds bounds = ranks(2, 1);
  bounds.lenders = {{1}, {}};
  bounds.losses_beyond = 2;
  bounds.disk = true;
  bounds.skips = 1;
  require_safe(bounds);
}

TEST_CASE("three ranks whose replicas borrow from a third: a lost host") {
  Bounds bounds = ranks(3, 1);
  bounds.lenders = {{2}, {0}, {1}};
  bounds.host_losses = meshstage::test::kSanitized ? 0 : 1;
  require_safe(bounds);
}

TEST_CASE("three ranks whose replicas borrow from a third: a difference") {
  Bounds bounds = ranks(3, 1);
  bounds.lenders = {{2}, {0}, {1}};
  bounds.differences = 1;
  require_safe(bounds);
}

TEST_CASE("random runs of ranks whose trainers hang keep every promise") {
  for (const int world : {2, 4, 7, 16}) {
    Bounds bounds = ranks(world, 3);
    bounds.hangs = 3;
    bounds.waits = 2;
    bounds.slow_disks = bounds.stuck_disks = 2;
    bounds.crashes = bounds.lost_messages = bounds.local_failures = bounds.skips = 1;
    const int runs = meshstage::test::kSanitized ? 20 : 300;
    require_safe_walks(bounds, static_cast<std::uint64_t>(world), runs);
  }
}

TEST_CASE("random runs of up to 64 ranks with every fault keep every promise") {
  for (const int world : {2, 3, 4, 5, 8, 13, 64}) {
    Bounds bounds = ranks(world, 4);
    bounds.crashes = 4;
    bounds.host_losses = 2;
    bounds.timeouts = 2;
    bounds.lost_messages = 2;
    bounds.local_failures = 3;
    bounds.skips = 3;
    bounds.mismatches = bounds.unanswered = 1;
    bounds.flips = 1;
    const int runs = (meshstage::test::kSanitized ? 20 : 400) / (world < 13 ? 1 : world);
    for (const bool zombies : {false, true}) {
      bounds.zombies = zombies ? 1 : 0;
      bounds.disk = bounds.finish = !zombies;
      bounds.losses_beyond = zombies ? 0 : 2;
      if (world >= 4 && zombies) {  // two holders each
        bounds.holders.clear();
        for (int r = 0; r < world; ++r)
          bounds.holders.push_back({(r + 1) % world, (r + 2) % world});
      }
      for (const bool borrowed : {false, true}) {  // with the next rank but one, and with the last
        bounds.differences = borrowed ? 2 : 0;
        bounds.lenders.clear();
        for (int r = 0; borrowed && r < world; ++r) {
          bounds.lenders.push_back({(r + (world == 2 ? 1 : 2)) % world});
          if (world > 3) bounds.lenders.back().push_back((r + world - 1) % world);
        }
        require_safe_walks(bounds, static_cast<std::uint64_t>(world), runs);
      }
    }
  }
}
