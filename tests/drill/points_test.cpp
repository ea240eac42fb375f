// Real ranks over Gloo are killed at each named point of the protocol, stopped in the midst of it,
// and killed at random: the survivors name who died, soon, and every bit is as undisturbed.
#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include <meshstage/core/points/points.hpp>

#include "tests/drill/drills.hpp"

namespace {

using drill_runs::drill;
using drill_runs::identical;
using drill_runs::Outcome;
using drill_runs::TemporaryDirectory;
using drill_runs::Words;
using meshstage::Point;

constexpr double kNoticedWithinMs = 7000;  // half of the deadline: not by silence

/// The lines that tell of a death, of a drill that must end identical.
std::vector<std::string> deaths_of(const Words& options) {
  const TemporaryDirectory directory;
  const Outcome outcome = drill(directory, options);
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  REQUIRE(outcome.code == 0);  // identical, and everything that was asked for has happened
  CHECK(outcome.out.find("IDENTICAL: ") != std::string::npos);
  CHECK(outcome.out.find("note: ") == std::string::npos);  // nobody gave up without a cause
  std::vector<std::string> deaths;
  std::istringstream lines(outcome.out);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("  rank ", 0) == 0) deaths.push_back(line);
  }
  return deaths;
}

/// All `survivors` noticed within `limit_ms`, and named the rank that died; as `error`, if not as
/// PeerLost.
void check_noticed(const std::string& death, std::size_t survivors, double limit_ms,
                   const std::string& error = "") {
  INFO(death);
  CHECK((death.find(" as ") != std::string::npos) == !error.empty());
  CHECK(death.find(error) != std::string::npos);
  // "(rank 0 named rank 2)", "(rank 0 named nobody)"
  CHECK(death.find(" named ") == std::string::npos);
  const auto at = death.find("| noticed by ");
  REQUIRE(at != std::string::npos);
  std::istringstream words(death.substr(at + std::string("| noticed by ").size()));
  std::string ranks;
  std::string in;
  double milliseconds = -1;
  REQUIRE(words >> ranks >> in >> milliseconds);
  CHECK(static_cast<std::size_t>(std::count(ranks.begin(), ranks.end(), ',')) + 1 == survivors);
  CHECK(milliseconds <= limit_ms);
}

struct Plan {
  Words faults;       ///< RANK stands for the victim.
  bool root = false;  ///< Passed by rank 0 alone.
};

/// How a rank of three or four comes by each point. It is an owner and a holder at once.
Plan plan_for(Point point) {
  const std::string name{to_string(point)};
  switch (point) {
    case Point::kFormed:
    case Point::kClaimed:
    case Point::kChoiceLearned:
    case Point::kReadyToRestore:
    case Point::kRestoring:
      return {{"--kill", "1@11", "--kill", "RANK@10:" + name}, false};
    case Point::kChosen:
    case Point::kEstablished:
      return {{"--kill", "1@11", "--kill", "RANK@10:" + name}, true};
    case Point::kFetchStarted:
    case Point::kFetched:
      return {{"--lose", "RANK@11", "--kill", "RANK@10:" + name}, false};
    case Point::kFirstNoted:
      return {{"--kill", "RANK@0:" + name}, true};
    case Point::kDecided:
      return {{"--kill", "RANK@9:" + name}, true};
    case Point::kFailed:
      return {{"--leave-out", "1@8", "--kill", "RANK@8:" + name}, false};
    case Point::kPersisted:
    case Point::kPruned:
      return {{"--persist-every", "1", "--kill", "RANK@9:" + name}, false};
    default:
      return {{"--kill", "RANK@9:" + name}, false};
  }
}

}  // namespace

TEST_CASE("A rank may die at every named point, as owner, as holder and as root") {
  for (const Point point : meshstage::all_points()) {
    const Plan plan = plan_for(point);
    for (const std::string victim : {"0", "2"}) {
      if (plan.root && victim != "0") continue;
      // A root that dies there has let some go and not others, who wait for them.
      if (point == Point::kFinishing && victim == "0") continue;
      Words words{"--ranks", "3", "--steps", "20", "--every", "4"};
      for (std::string word : plan.faults) {
        if (const auto at = word.find("RANK"); at != std::string::npos) word.replace(at, 4, victim);
        words.push_back(word);
      }
      INFO("rank " << victim << " at " << to_string(point));
      const auto deaths = deaths_of(words);  // fails if the point is never passed
      const bool two = plan.faults.size() == 4 && plan.faults[2] == "--kill" &&
                       point != Point::kFailed && point != Point::kPersisted &&
                       point != Point::kPruned;
      REQUIRE(deaths.size() == (two ? 2 : 1));
      if (point == Point::kFinishing) continue;  // the others may be done by then
      // Of two deaths at nearly one moment only the first is sure to be seen by all.
      check_noticed(deaths.front(), 2, kNoticedWithinMs);
    }
  }
}

TEST_CASE("A rank may die at every point before any step is complete") {
  // Step 0: what all begin with. Nobody trains before it is complete.
  for (const std::string point :
       {"formed", "claimed", "choice-learned", "restoring", "own-writing", "offered",
        "replica-writing", "chunk-received", "own-sealed", "replica-sealed", "voted", "complete"}) {
    for (const std::string victim : {"0", "2"}) {
      INFO("rank " << victim << " at " << point);
      const auto deaths = deaths_of(
          {"--ranks", "3", "--steps", "6", "--every", "4", "--kill", victim + "@0:" + point});
      REQUIRE(deaths.size() == 1);
      // A rank that has not yet entered the first generation loses nobody: it forms the next one.
      if (point == "formed" || point == "claimed") continue;
      check_noticed(deaths.front(), 2, kNoticedWithinMs);
    }
  }
}

TEST_CASE("A rank may die at every named point where copies borrow from another rank") {
  // In a ring of four rank 2 holds what rank 1 leaves there, and rank 3 has the rest: it is owner,
  // holder of rank 2's copy and completes rank 1's. Several deaths in each drill, one after
  // another.
  const std::vector<Words> drills{
      {"--kill", "3@1:own-writing", "--kill", "3@5:offered", "--kill", "3@9:replica-writing",
       "--kill", "3@13:chunk-sent"},
      {"--kill", "3@1:chunk-received", "--kill", "3@5:own-sealed", "--kill", "3@9:replica-sealed",
       "--kill", "3@13:voted"},
      {"--persist-every", "1", "--kill", "0@0:first-noted", "--kill", "3@5:complete", "--kill",
       "0@9:decided", "--kill", "3@13:persisted"},
      {"--persist-every", "1", "--leave-out", "1@8", "--kill", "3@8:failed", "--kill",
       "3@13:pruned", "--kill", "3@17:finishing"},
      {"--lose", "1@6", "--kill", "3@5:formed", "--lose", "1@10", "--kill", "3@9:claimed", "--lose",
       "1@14", "--kill", "3@13:choice-learned", "--lose", "1@18", "--kill",
       "3@17:ready-to-restore"},
      {"--lose", "1@6", "--kill", "3@5:restoring", "--lose", "1@10", "--kill", "0@9:chosen",
       "--lose", "1@14", "--kill", "0@13:established"},
      {"--lose", "3@6", "--kill", "3@5:fetch-started", "--lose", "3@14", "--kill", "3@13:fetched"},
      // Who holds the copy of a lost rank, or completes it, dies as it sends.
      {"--lose", "1@6", "--kill", "2@5:ready-to-restore", "--lose", "1@10", "--kill",
       "2@9:choice-learned", "--lose", "1@14", "--kill", "2@13:chunk-sent", "--lose", "1@18",
       "--kill", "3@17:chunk-sent"},
  };
  std::string asked;
  for (const auto& faults : drills) {
    Words words{"--mesh",  "2,2", "--borrow-replicated", "--partners", "ring", "--steps", "20",
                "--every", "4"};
    words.insert(words.end(), faults.begin(), faults.end());
    std::size_t count = 0;
    bool lose = false;
    for (const auto& word : faults) {
      if (word == "--kill" || word == "--lose") ++count;
      if (word == "--lose") lose = true;
      asked += word + " ";
    }
    INFO(faults[1]);
    const auto deaths = deaths_of(words);  // fails if a point is never passed
    REQUIRE(deaths.size() == count);
    for (const auto& death : deaths) {
      // Of two deaths at nearly one moment only the first is sure to be seen by all.
      if (lose && death.find(" lost with its vault ") == std::string::npos) continue;
      if (death.find(", finishing |") != std::string::npos) continue;
      check_noticed(death, 3, kNoticedWithinMs);
    }
  }
  for (const Point point : meshstage::all_points()) {
    INFO(to_string(point));
    CHECK(asked.find(":" + std::string(to_string(point)) + " ") != std::string::npos);
  }
}

TEST_CASE(
    "A rank that hangs before, in a transfer or in the agreement is named within a deadline") {
  for (const std::string point : {"", ":chunk-sent", ":chunk-received", ":voted", ":own-sealed"}) {
    INFO("at" << point);
    const auto deaths = deaths_of({"--ranks", "3", "--steps", "20", "--every", "4", "--stop",
                                   "1@9" + point, "--deadline-ms", "4000"});
    REQUIRE(deaths.size() == 1);
    check_noticed(deaths.front(), 2, 12000, "peer silent");
    CHECK(deaths.front().find("its old process ended by itself: fenced") != std::string::npos);
  }
}

TEST_CASE("Random kills of 2, 3, 4, 5 and 7 ranks all end identical") {
  for (const std::string ranks : {"2", "3", "4", "5", "7"}) {
    for (int seed = 1; seed <= 4; ++seed) {
      INFO(ranks << " ranks, seed " << seed);
      const std::string kills = std::to_string(1 + seed % 3);
      const auto object = identical({"--ranks", ranks, "--steps", "20", "--every", "3", "--kills",
                                     kills, "--seed", std::to_string(seed)});
      CHECK(std::to_string(object.at("kills").size()) == kills);
    }
  }
}

TEST_CASE("An owner that dies with its holder comes back from disk, or the ranks are named") {
  // Of four ranks, 2 holds 0's images.
  const auto object = identical({"--ranks", "4", "--steps", "20", "--every", "4", "--persist-every",
                                 "1", "--lose", "0+2@15"});
  REQUIRE(object.at("kills").size() == 2);
  for (const auto& kill : object.at("kills")) {
    CHECK(kill.at("source") == "disk");
    CHECK(kill.at("recovered_step").get<int>() >= 4);
  }
  const Outcome outcome =
      drill_runs::run(MESHSTAGE_COMMAND, {"drill", "--ranks", "4", "--steps", "20", "--every", "4",
                                          "--persist-every", "0", "--lose", "0+2@15"});
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 1);
  CHECK(outcome.err.find("missing in memory and on disk: rank 0 2") != std::string::npos);
  CHECK(outcome.out.find("IDENTICAL") == std::string::npos);
}
