// What a drill makes of ranks that do what they may not: programs that only report it.
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"
#include "tools/drill/job.hpp"

namespace {

using namespace meshstage::tools::drill;

/// Before what a test says: `life` counts the processes in the place of the rank, and `say`
/// reports.
constexpr const char* kBegin = R"sh(#!/bin/bash
cd "$(dirname "$0")"
lives=lives-$MESHSTAGE_RANK
life=$(($(cat "$lives" 2>/dev/null || echo 0) + 1)); echo "$life" > "$lives"
say() { echo "{\"what\":\"$1\"${2:+,$2}}" >&3; }
recovered() {
  say recovered "\"step\":$1,\"generation\":$life,\"source\":\"own memory\""
  say begin "\"step\":$(($1 + 1))"
}
persisted() { say point "\"point\":\"persisted\",\"generation\":1,\"step\":$1"; }
complete() { say point "\"point\":\"complete\",\"generation\":$1,\"step\":$2"; }
dies() { say dying '"fault":0'; kill -KILL $$; }
hangs() { say stopping '"fault":0'; kill -STOP $$; }
ends() { say finished; exit 0; }
)sh";

/// A job of one rank, which is that program.
class Played {
 public:
  Played(How how, const std::string& fault, const std::string& script) {
    options_.arguments.ranks = 1;
    options_.arguments.steps = 100;
    options_.arguments.deadline_ms = 100;
    options_.arguments.timeout_s = 60;
    options_.faults = options_.arguments.faults = {parse_fault(how, fault, 1, 100)};
    options_.name = "drill-played";
    options_.every = 1;
    options_.directory = directory_.path();
    options_.vaults = {directory_.path()};
    options_.disks = {directory_.path()};
    options_.trainer = directory_.path() / "trainer";
    std::ofstream(options_.trainer) << kBegin << script;
    std::filesystem::permissions(options_.trainer, std::filesystem::perms::owner_all);
  }
  /// Then as many ranks are that program, each on a host of its own whose disk has a file. `first`:
  /// faults before that of the job.
  Played& hosts(int ranks, std::vector<Fault> first = {}) {
    options_.arguments.ranks = ranks;
    options_.arguments.disks = "local";
    options_.faults.insert(options_.faults.begin(), first.begin(), first.end());
    options_.arguments.faults = options_.faults;
    options_.disks.clear();
    for (int host = 0; host < ranks; ++host) {
      options_.disks.push_back(directory_.path() / ("disk-" + std::to_string(host)));
      std::filesystem::create_directory(options_.disks.back());
      std::ofstream(options_.disks.back() / "a-file") << "written\n";
    }
    return *this;
  }
  JobResult run() {
    meshstage::tools::Signals signals;
    Display display(stdout, Display::Mode::kSilent);
    return Job(options_, signals, display).run();
  }
  /// What was wrong, or what ended the run.
  std::string wrong() {
    try {
      std::string text;
      for (const auto& what : run().wrong) text += what + "\n";
      return text;
    } catch (const JobFailed& e) {
      return e.what();
    }
  }

 private:
  TempDirectory directory_;
  JobOptions options_;
};

}  // namespace

TEST_CASE("A restart that goes on from an older step than the newest complete one is told") {
  const auto wrong = [](const std::string& recovers) {
    return Played(How::kRestart, "all@10",
                  "if [ $life = 1 ]; then recovered 0; complete 1 8; complete 1 9; dies; fi\n"
                  "recovered " +
                      recovers + "; complete 2 10; ends\n")
        .wrong();
  };
  CHECK(wrong("8") == "step 8 was recovered, though step 9 was complete\n");
  CHECK(wrong("9").empty());
  CHECK(wrong("10").empty());  // every rank had it, and nobody knew
}

TEST_CASE("A death is told at the point where it happened, whatever other threads told meanwhile") {
  const auto result = Played(How::kRestart, "all@10:chunk-sent",
                             "if [ $life = 1 ]; then recovered 0\n"
                             "  sent='\"point\":\"chunk-sent\",\"chunk\":3,\"chunks\":11'\n"
                             "  say point \"$sent\"; say point '\"point\":\"voted\"'\n"
                             "  say dying '\"fault\":0,'\"$sent\"; kill -KILL $$; fi\n"
                             "recovered 0; ends\n")
                          .run();
  REQUIRE(result.deaths.size() == 1);
  CHECK(result.deaths[0].point == "chunk-sent");
  CHECK(result.deaths[0].doing == describe_point("chunk-sent", 3, 11));
}

TEST_CASE("Where all memory is lost the newest step on every disk is due") {
  const auto wrong = [](const std::string& recovers) {
    return Played(How::kLose, "all@10",
                  "if [ $life = 1 ]; then recovered 0; complete 1 8; complete 1 9\n"
                  "  say point '\"point\":\"persisted\",\"generation\":1,\"step\":8'; dies; fi\n"
                  "recovered " +
                      recovers + "; ends\n")
        .wrong();
  };
  CHECK(wrong("7") == "step 7 was recovered, though step 8 was on disk for every rank\n");
  CHECK(wrong("8").empty());
}

TEST_CASE("What any disk has of each rank is due, the owner's file or its holder's") {
  const auto wrong = [](const std::string& recovers) {
    return Played(How::kLose, "all@10",
                  "if [ $life = 2 ]; then recovered " + recovers + R"sh(; ends; fi
recovered 0; complete 1 8; persisted 4
if [ $MESHSTAGE_RANK = 1 ]; then persisted 8; touch wrote; exec sleep 100; fi
until [ -e wrote ]; do sleep 0.01; done
dies
)sh")
        .hosts(2)
        .wrong();
  };
  CHECK(wrong("4") == "step 4 was recovered, though step 8 was on disk for every rank\n");
  CHECK(wrong("8").empty());
}

TEST_CASE("A lost host's disk is empty for whoever comes next, and what it had is not due") {
  const auto wrong = [](const std::string& recovers) {
    return Played(How::kLose, "all@10", "recovers=" + recovers + R"sh(
generation() { say recovered "\"step\":$1,\"generation\":$2,\"source\":\"disk\""; }
case $MESHSTAGE_RANK-$life in
  0-1) generation 0 1; complete 1 8; persisted 4; touch wrote
    until [ -e back ]; do sleep 0.01; done
    say lost '"rank":1'; generation 8 2; dies ;;
  1-1) generation 0 1; complete 1 8; persisted 4; persisted 8
    until [ -e wrote ]; do sleep 0.01; done
    dies ;;
  1-2) if [ -e disk-1/a-file ] || ! [ -e disk-0/a-file ]; then exit 9; fi
    generation 8 2; touch back; exec sleep 100 ;;
  *) generation $recovers 3; ends ;;
esac
)sh")
        .hosts(2, {parse_fault(How::kLose, "1@9", 2, 100)})
        .wrong();
  };
  CHECK(wrong("4").empty());
  CHECK(wrong("3") == "step 3 was recovered, though step 4 was on disk for every rank\n");
}

TEST_CASE("An old process may call no step complete that the new job went on without") {
  const auto wrong = [](const std::string& then) {
    return Played(How::kStop, "all@10:wake",
                  "if [ $life = 1 ]; then recovered 0; complete 1 8; hangs; " + then +
                      "; fi\n"
                      "recovered 8; ends\n")
        .wrong();
  };
  const std::string fenced = "say fenced '\"why\":\"fenced: start-2 owns the job\"'; exit 4";
  CHECK(wrong("complete 1 9; " + fenced) ==
        "rank 0's old process called step 9 complete when the job had gone on from step 8 without "
        "it\n");
  CHECK(wrong("complete 1 8; " + fenced).empty());
  CHECK_THAT(wrong("ends"), contains_text("it must end because it is fenced, but ended with exit "
                                          "code 0"));
  CHECK_THAT(wrong("kill -KILL $$"), contains_text("it must end because it is fenced"));
}

TEST_CASE("A second start that is not refused as it must be ends the drill") {
  const auto wrong = [](const std::string& second) {
    return Played(How::kTwice, "10",
                  "if [ $life = 1 ]; then recovered 9; say held '\"step\":10'\n"
                  "  until [ -e go-on-10 ]; do sleep 0.01; done; ends; fi\n" +
                      second + "\n")
        .wrong();
  };
  const auto refused = [](const std::string& why) {
    return "say failed '\"why\":\"" + why + "\"'; exit 1";
  };
  const std::string right = "job j is running: all ranks of the start \\\"start-1\\\": take_over";
  CHECK(wrong(refused(right)).empty());
  CHECK_THAT(wrong("say joined; " + refused(right)), contains_text("joined the healthy job"));
  CHECK_THAT(
      wrong(refused("no Store answered")),
      contains_text("must be refused by the healthy job, but ended with exit code 1, failed: "
                    "no Store answered"));
  CHECK_THAT(wrong(refused("job j is running: all ranks of another start: take_over")),
             contains_text("must be refused"));
  CHECK_THAT(wrong("ends"), contains_text("must be refused"));
}

TEST_CASE("A job that notices a second start is told, though it goes on") {
  const std::string wrong =
      Played(How::kTwice, "10",
             "if [ $life = 1 ]; then recovered 9; say held '\"step\":10'\n"
             "  until [ -e go-on-10 ]; do sleep 0.01; done\n"
             "  say lost '\"rank\":1,\"why\":\"peer lost\"'; ends; fi\n"
             "say failed '\"why\":\"is running: \\\"start-1\\\" take_over\"'; exit 1\n")
          .wrong();
  CHECK_THAT(wrong, contains_text("rank 0 gave the others up, without a fault that explains it"));
}
