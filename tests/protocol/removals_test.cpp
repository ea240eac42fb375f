#include <algorithm>
#include <iostream>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/explorer/explore.hpp"
#include "tests/support/explorer/rules.hpp"

// Each rule is needed: without it the explorer finds a run that breaks a promise. Coming to rest in
// the wrong place does not count here; something must be lost, mixed, or decided both ways.

using namespace meshstage;
using namespace meshstage::explorer;

namespace {

/// Small bounds within which leaving the rule out shows.
Bounds bounds_for(const std::string& rule) {
  Bounds b;
  b.world = 2;
  b.steps = 2;
  b.crashes = 1;
  if (rule == "generations-apart") b.crashes = 2;
  if (rule == "verify-claims") b.flips = 1;
  if (rule == "receiver-knows-outcome") b.world = 3, b.steps = 3, b.crashes = 0;
  if (rule == "note-first") b.world = 1, b.steps = 1, b.crashes = 0, b.losses_beyond = 1;
  if (rule == "look") b.crashes = 0, b.steps = 1, b.zombies = 1;
  if (rule == "restore-holders") b.crashes = 0, b.host_losses = 1;
  if (rule == "fetch-beside-base") b.host_losses = 1;
  if (rule == "old-if-newer") b.steps = 1, b.losses_beyond = 2, b.old_job = b.disk = true;
  if (rule == "publish-old") b.steps = 1, b.old_job = b.old_memory = true;
  if (rule == "prove-old") b.steps = 1, b.old_job = b.old_memory = b.old_rot = true;
  if (rule == "old-anywhere") {
    b.world = 3, b.steps = 1, b.old_job = b.old_memory = b.old_apart = true;
  }
  if (rule == "count-kept" || rule == "keep-old" || rule == "keep-old-replicas") {
    b.steps = 1, b.old_job = b.old_memory = b.old_apart = b.old_kept = true;
  }
  if (rule == "look-old") b.steps = 1, b.old_job = b.old_unclaimed = true;
  if (rule == "beyond-unknown") b.claims = 2, b.crashes = 2, b.local_failures = 1;
  if (rule == "ask-beyond") b.claims = 2;
  if (rule == "agree-first") b.world = 3, b.steps = 3;
  if (rule == "structure-first") b.mismatches = 1;
  if (rule == "publish-cut") b.steps = b.mismatches = 1, b.any_cut = true;
  if (rule == "found-anywhere") b.crashes = 0, b.steps = b.reseats = 1;
  if (rule == "finish-together") b.steps = 1, b.finish = true;
  if (rule == "prune-together") b.world = 3, b.disk = true;
  if (rule == "lent-stays-own") b.crashes = 0, b.reseats = 2, b.lenders = {{1}, {}};
  if (rule == "vote-needs-lent") b.steps = b.differences = 1, b.lenders = {{1}, {0}};
  if (rule == "complete-claims") b.differences = 1, b.lenders = {{1}, {0}};
  return b;
}

Result without(const std::string& rule, Bounds& bounds) {
  bounds = bounds_for(rule);
  *find_rule(bounds.rules, rule) = false;
  Limits limits;
  limits.safety_only = true;
  limits.max_states = 3'000'000;
  return explore(bounds, limits);
}

void require_needed(const std::string& rule) {
  Bounds bounds;
  const Result result = without(rule, bounds);
  std::cout << "without " << rule << ": " << summary(bounds, result) << "\n  " << result.violation
            << std::endl;
  REQUIRE(result.violation != "");
  // With the rule, the same run is harmless.
  bounds.rules = {};
  REQUIRE(replay(bounds, result.trace).violation() == "");
}

/// Nothing breaks within `bounds`; without the rule something does, in these words.
void require_broken_without(const std::string& rule, Bounds bounds, const std::string& words) {
  REQUIRE(explore(bounds).violation == "");
  *find_rule(bounds.rules, rule) = false;
  const Result result = explore(bounds);
  std::cout << "without " << rule << ": " << summary(bounds, result) << std::endl;
  REQUIRE(result.violation.find(words) != std::string::npos);
}

/// Without the rule something is lost or mixed within `bounds`, in these words.
void require_lost_without(const std::string& rule, Bounds bounds, const std::string& words) {
  *find_rule(bounds.rules, rule) = false;
  Limits limits;
  limits.safety_only = true;
  const Result result = explore(bounds, limits);
  std::cout << tell(bounds, result.trace);
  REQUIRE(result.violation.find(words) != std::string::npos);
}

static_assert(kRules.size() == 36, "each rule has its test here");

}  // namespace

TEST_CASE("without keeping generations apart a promise breaks") {
  require_needed("generations-apart");
}
TEST_CASE("without verifying claims a promise breaks") { require_needed("verify-claims"); }
TEST_CASE("without staging beside the base a promise breaks") {
  require_needed("stage-beside-base");
}
TEST_CASE("without replicas behind a vote a promise breaks") {
  require_needed("vote-needs-replicas");
}
TEST_CASE("without comparing what is borrowed a promise breaks") {
  require_needed("vote-needs-lent");
}
TEST_CASE("without counting replicas only with what they borrow a promise breaks") {
  require_needed("complete-claims");
}
TEST_CASE("without the voter's promise a promise breaks") { require_needed("promise"); }
TEST_CASE("without the receiver's condition a promise breaks") {
  require_needed("receiver-knows-outcome");
}
TEST_CASE("without everyone's vote a promise breaks") { require_needed("all-must-vote"); }
TEST_CASE("without the note first a promise breaks") { require_needed("note-first"); }
TEST_CASE("without the root's look a promise breaks") { require_needed("look"); }
TEST_CASE("without choosing what is covered a promise breaks") { require_needed("newest-covered"); }
TEST_CASE("without counting images wherever they lie a promise breaks") {
  require_needed("found-anywhere");
}
TEST_CASE("without reading files wherever they lie a promise breaks") {
  Bounds bounds;
  bounds.world = 2;
  bounds.steps = bounds.reseats = 1;
  bounds.losses_beyond = 2;
  bounds.disk = bounds.local_disks = true;
  bounds.lenders = {{1}, {0}};
  require_lost_without("found-anywhere", bounds, "called unrecoverable, though");
}
TEST_CASE("without keeping own copies of what is lent a promise breaks") {
  require_needed("lent-stays-own");
}
TEST_CASE("without sparing the base in stray vaults a promise breaks") {
  Bounds bounds;
  bounds.world = bounds.steps = bounds.reseats = 2;
  bounds.scarce = true;
  require_lost_without("fetch-beside-base", bounds, "alone would lose it");
}
TEST_CASE("without agreement before stray vaults are removed a promise breaks") {
  Bounds bounds;
  bounds.world = 3;
  bounds.steps = bounds.reseats = 1;
  require_lost_without("agree-first", bounds, "alone would lose it");
}
TEST_CASE("without knowing what was left out a promise breaks") {
  require_needed("beyond-unknown");
}
TEST_CASE("without asking for what was left out a promise breaks") { require_needed("ask-beyond"); }
TEST_CASE("without asking for what was left out a step on disk is not found") {
  Bounds bounds;
  bounds.world = 2;
  bounds.steps = 3;
  bounds.losses_beyond = 2;
  bounds.claims = 2;
  bounds.disk = true;
  bounds.lenders = {{1}, {0}};  // no rank's disk has both images of a step
  require_lost_without("ask-beyond", bounds, "gives up for the number of images, though");
}
TEST_CASE("without comparing an old job's step with what is covered a promise breaks") {
  require_needed("old-if-newer");
}
TEST_CASE("without making an old job's images files first a promise breaks") {
  require_needed("publish-old");
}
TEST_CASE("without proof of each file of an old job's step a promise breaks") {
  require_needed("prove-old");
}
TEST_CASE("without files of an old job's step on any disk a promise breaks") {
  require_needed("old-anywhere");
}
TEST_CASE("without counting an old job's images that are kept in memory a promise breaks") {
  require_needed("count-kept");
}
TEST_CASE("without keeping an old job's images until a step is complete a promise breaks") {
  require_needed("keep-old");
}
TEST_CASE("without keeping an old job's replicas, too, a promise breaks") {
  require_needed("keep-old-replicas");
}
TEST_CASE("without the root's proof of what no rank claimed of an old step a promise breaks") {
  require_needed("look-old");
}
TEST_CASE("without restoring holders a promise breaks") { require_needed("restore-holders"); }
TEST_CASE("without sparing the base in a fetch a promise breaks") {
  require_needed("fetch-beside-base");
}
TEST_CASE("without agreement before restoring a promise breaks") { require_needed("agree-first"); }
TEST_CASE("without comparing structure first a promise breaks") {
  require_needed("structure-first");
}
TEST_CASE("without comparing structure first, states of another cut are restored") {
  Bounds bounds;
  bounds.world = 2;
  bounds.steps = bounds.crashes = bounds.mismatches = 1;
  bounds.any_cut = true;
  require_lost_without("structure-first", bounds, "though a structure does not match");
}
TEST_CASE("without files of a step before it is cut anew a promise breaks") {
  require_needed("publish-cut");
}
TEST_CASE("without quarantine a promise breaks") { require_needed("quarantine"); }
TEST_CASE("without finishing together a promise breaks") { require_needed("finish-together"); }
TEST_CASE("without a no from whoever finishes, the others wait for ever") {
  Bounds bounds;
  bounds.world = 2;
  bounds.steps = 2;
  bounds.early_ends = 1;
  bounds.finish = true;
  require_broken_without("finish-is-a-no", bounds, "waits for ever: g1 step");
}
TEST_CASE("a rank whose trainer hangs names itself, or the others wait for ever") {
  Bounds bounds;
  bounds.world = 2;
  bounds.steps = 1;
  bounds.hangs = 1;
  require_broken_without("names-itself", bounds, "waits for ever");
}
TEST_CASE("a rank whose disk hangs names itself, or the others wait for ever") {
  Bounds bounds;
  bounds.world = 2;
  bounds.steps = 1;
  bounds.stuck_disks = 1;
  bounds.disk = true;
  require_broken_without("names-itself", bounds, "waits for ever: it is not recovered");
}
TEST_CASE("without waiting for a slow disk a rank is lost that reads") {
  Bounds bounds;
  bounds.world = 2;
  bounds.steps = 1;
  bounds.slow_disks = bounds.waits = 1;
  require_broken_without("waits-for-disk", bounds, "names itself, though it waits");
}
TEST_CASE("without orders beside the base ranks end at different steps") {
  // A rank whose Complete is overtaken by an offer stages the last step and does not know it.
  Bounds bounds;
  bounds.world = 3;
  bounds.ends = 1;
  require_broken_without("orders-with-base", bounds,
                         "is the last step for one rank and not for another");
}
TEST_CASE("without pruning together a promise breaks") { require_needed("prune-together"); }

TEST_CASE("a found trace is shortened, reads as a sequence, and replays") {
  Bounds bounds;
  const Result result = without("stage-beside-base", bounds);
  const auto trace = shorten(bounds, result.trace);
  REQUIRE(trace.size() <= result.trace.size());
  REQUIRE(replay(bounds, trace).violation() != "");
  auto shorter = trace;
  shorter.pop_back();
  REQUIRE(replay(bounds, shorter).violation() == "");  // it is the last choice that breaks it
  const std::string text = tell(bounds, trace);
  std::cout << text;
  // What was printed is enough to go through it again, and what is no such run is refused.
  REQUIRE(read_trace(bounds, text) == trace);
  REQUIRE_THROWS_AS(read_trace(bounds, "1. rank 0 stages its next step\n"), std::invalid_argument);
  REQUIRE(text.find("1. all meet and form a generation") == 0);
  REQUIRE(text.find("writes g1 step 2 into own slot 0") != std::string::npos);
  REQUIRE(text.find("VIOLATED: g1 step 1 is complete, but the loss of host") != std::string::npos);
}

TEST_CASE("every run is told so that it can be read again, and no two choices read the same") {
  Bounds bounds;
  bounds.world = 3;
  bounds.steps = 3;
  bounds.crashes = bounds.timeouts = bounds.lost_messages = bounds.local_failures = 2;
  bounds.host_losses = bounds.skips = bounds.early_ends = bounds.mismatches = bounds.flips =
      bounds.zombies = bounds.unanswered = 1;
  bounds.disk = bounds.finish = true;
  bounds.differences = 1;
  bounds.reseats = 2;
  bounds.lenders = {{2}, {0}, {1}};
  for (const bool quarantine : {true, false}) {
    bounds.rules.quarantine = quarantine;
    std::mt19937_64 random(quarantine ? 5U : 6U);
    for (int run = 0; run < 20; ++run) {
      World world(std::make_shared<const Bounds>(bounds));
      std::vector<explorer::Choice> trace;
      for (auto choices = world.choices(); !choices.empty(); choices = world.choices()) {
        std::set<std::string> words;
        for (const auto& choice : choices) words.insert(to_string(choice));
        REQUIRE(words.size() == choices.size());
        trace.push_back(choices[random() % choices.size()]);
        world.step(trace.back());
      }
      REQUIRE(trace.size() > 10);
      REQUIRE(read_trace(bounds, tell(bounds, trace)) == trace);
    }
  }
}

TEST_CASE("the explorer notices a rank that waits for ever") {
  Bounds bounds;
  bounds.rules.generations_apart = false;
  bounds.crashes = 1;
  const Result result = explore(bounds);
  REQUIRE(result.violation.find("waits for ever") != std::string::npos);
}
