// Drills on hosts that are namespaces: a rank of another host is reached by the network alone, and
// neither its memory nor its processes are seen.
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <string>

#include "tests/drill/drills.hpp"
#include "tests/drill/namespace_machine.hpp"

namespace {

using drill_runs::identical;
using drill_runs::Outcome;
using drill_runs::TemporaryDirectory;
using drill_runs::Words;
using nlohmann::json;

/// On hosts with a rank each.
json on_hosts(const std::string& ranks, const Words& more,
              const std::string& deadline_ms = "2000") {
  Words words{"--hosts", "namespaces", "--ranks", ranks,           "--steps",
              "20",      "--every",    "4",       "--deadline-ms", deadline_ms};
  words.insert(words.end(), more.begin(), more.end());
  const json object = identical(words);
  CHECK(object.at("hosts") == "namespaces");
  CHECK(object.at("wrong").empty());
  CHECK(object.at("grown").empty());
  return object;
}

// {the same seats, next host, swapped} x {as many ranks, fewer, more}, in turns with files and
// without.
void comes_back(const std::string& option, const std::string& more, int files_from) {
  MESHSTAGE_NEEDS_NAMESPACES();
  int turn = files_from;
  for (const std::string seats : {"", ":rotate", ":swap"}) {
    for (const std::string ranks : {"", ":ranks=3", ":ranks=5"}) {
      const std::string every = ++turn % 2 == 0 ? "1" : "0";
      const std::string fault = "all@11" + more + seats + ranks;
      INFO(option << " " << fault << ", --persist-every " << every);
      const json object = on_hosts("4", {option, fault, "--persist-every", every});
      REQUIRE(object.at("kills").size() == 1);
      // 8 may not be complete yet; what is complete comes back, or the drill is WRONG.
      CHECK(object.at("kills").at(0).at("recovered_step").get<int>() >= 4);
    }
  }
}

}  // namespace

TEST_CASE("All ranks are killed, and come back on any hosts, in any number") {
  comes_back("--restart", "", 0);
}

TEST_CASE("All ranks hang, and a new start goes on from what they have, on any hosts") {
  comes_back("--stop", "", 1);
}

TEST_CASE("Half of the ranks are killed and half hang, a new start goes on, and those are fenced") {
  comes_back("--stop", ":half:wake", 0);
}

TEST_CASE("Of two starts at the same moment, on any hosts, one gets the job") {
  comes_back("--restart", ":twice", 1);
}

TEST_CASE("A second start on the hosts of a healthy job is refused") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const json object = on_hosts("3", {"--twice", "10", "--kill", "0@15"}, "15000");
  REQUIRE(object.at("second_starts").size() == 1);
  REQUIRE(object.at("kills").size() == 1);
  CHECK(object.at("kills").at(0).at("source") == "own memory");
}

TEST_CASE("A host that is lost boots anew, and its rank comes back from another host's memory") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const json object = on_hosts("3", {"--lose", "2@7:chunk-received", "--lose", "0@14"});
  REQUIRE(object.at("kills").size() == 2);
  for (const auto& death : object.at("kills")) CHECK(death.at("source") == "holder memory");
}

TEST_CASE("Hosts with two ranks each are lost and their ranks move, with disks of their own") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const json object =
      on_hosts("4", {"--ranks-per-host", "2", "--partners", "across-hosts", "--disks", "local",
                     "--lose", "2+3@7", "--restart", "all@12:rotate", "--lose", "all@17:swap"});
  REQUIRE(object.at("kills").size() == 4);
  CHECK(object.at("kills").at(0).at("source") == "holder memory");
  CHECK(object.at("kills").at(3).at("source") == "disk");
}

TEST_CASE("A rank that hangs on its host is replaced there, and fenced when it wakes up") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const json object = on_hosts("3", {"--stop", "1@10", "--kill", "0+2@15"});
  REQUIRE(object.at("kills").size() == 3);
  CHECK(object.at("kills").at(0).at("how") == "stop");
}

TEST_CASE("Old processes that a lost host takes along cannot be fenced any more") {
  MESHSTAGE_NEEDS_NAMESPACES();
  // The host is lost while the old processes are stopped: before the new ones train.
  const json of_one = on_hosts("3", {"--stop", "1@10", "--lose", "1@10:formed"});
  REQUIRE(of_one.at("kills").size() == 2);
  CHECK(of_one.at("kills").at(0).at("lost_with_hosts") == 1);
  for (const auto& [lost, processes] : {std::pair{"1", 1}, std::pair{"all", 3}}) {
    INFO(lost);
    const json of_all =
        on_hosts("3", {"--stop", "all@10:wake", "--lose", std::string(lost) + "@10:claimed"});
    REQUIRE(of_all.at("kills").size() == 2);
    CHECK(of_all.at("kills").at(0).at("lost_with_hosts") == processes);
  }
}

TEST_CASE("A drill that is killed leaves no process on any host") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const TemporaryDirectory directory;
  std::size_t trainers = 0;
  const Outcome outcome =
      drill_runs::run(MESHSTAGE_COMMAND,
                      {"drill", "--hosts", "namespaces", "--dir", directory.path(), "--ranks", "2",
                       "--steps", "2000", "--every", "20", "--kill", "1@20"},
                      std::chrono::seconds(120), {}, "rank 1 killed", SIGKILL,
                      [&] { trainers = drill_runs::processes_with(directory.path()).size(); });
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 128 + SIGKILL);
  CHECK(trainers >= 3);  // the drill itself, and each rank
  CHECK(drill_runs::processes_that_stay(directory.path()).empty());
}

TEST_CASE("Where there can be no such hosts the drill ends with 3 and says what helps") {
  const TemporaryDirectory directory;
  const Words words{"drill",   "--hosts", "namespaces", "--dir", directory.path(),
                    "--steps", "8",       "--kill",     "1@6"};
  std::string program = MESHSTAGE_COMMAND;
  Words all = words;
  if (::geteuid() == 0) {  // without the capability
    program = "/usr/bin/setpriv";
    const Words less{"--bounding-set=-sys_admin", "--inh-caps=-sys_admin"};
    all = less;
    all.emplace_back("true");
    if (::access(program.c_str(), X_OK) != 0 ||
        drill_runs::run(program, all, std::chrono::seconds(60)).code != 0) {
      WARN("skipped: setpriv is missing, or may not take a capability away");
      return;
    }
    all = less;
    all.emplace_back(MESHSTAGE_COMMAND);
    all.insert(all.end(), words.begin(), words.end());
  }
  const Outcome outcome = drill_runs::run(program, all, std::chrono::seconds(60));
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 3);
  CHECK_THAT(outcome.err, contains_text("--hosts namespaces: hosts cannot be namespaces: "));
  CHECK_THAT(outcome.err, contains_text("run this as root, or by `unshare --user"));
  CHECK(outcome.out.empty());
  CHECK(directory.entries().empty());
}
