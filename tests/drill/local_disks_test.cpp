// Drills of hosts with disks of their own, as a user types them: real processes, real signals.
#include <string>

#include "tests/drill/drills.hpp"

namespace {

using drill_runs::drill;
using drill_runs::identical;
using drill_runs::Outcome;
using drill_runs::TemporaryDirectory;
using drill_runs::Words;
using nlohmann::json;

json local_disks(const std::string& ranks, const Words& more) {
  Words words{"--disks", "local", "--ranks", ranks, "--steps", "20", "--every", "4"};
  words.insert(words.end(), more.begin(), more.end());
  const json object = identical(words);
  CHECK(object.at("disks") == "local");
  CHECK(object.at("wrong").empty());
  return object;
}

}  // namespace

TEST_CASE("Where all memory is lost each host's disk has what its rank comes back from") {
  const json death = local_disks("3", {"--lose", "all@15"}).at("kills").at(0);
  CHECK(death.at("source") == "disk");
  CHECK(death.at("recovered_step").get<int>() >= 4);
  CHECK_FALSE(death.contains("seats"));
}

TEST_CASE("Ranks that lost all memory and sit on other hosts find their files there") {
  const json object = local_disks("4", {"--lose", "all@11:rotate", "--lose", "all@18:rotate"});
  REQUIRE(object.at("kills").size() == 2);
  for (const auto& death : object.at("kills")) {
    CHECK(death.at("seats") == "next host");
    CHECK(death.at("source") == "disk");
    CHECK(death.at("recovered_step").get<int>() >= 4);
  }
}

TEST_CASE("A host that is lost with its disk comes back, and then all memory is lost") {
  // What the first host had on disk lies on its holder's, too.
  const json object =
      local_disks("3", {"--persist-every", "1", "--lose", "0@14", "--lose", "all@15:rotate"});
  REQUIRE(object.at("kills").size() == 2);
  CHECK(object.at("kills").at(0).at("source") == "holder memory");
  CHECK(object.at("kills").at(1).at("source") == "disk");
  CHECK(object.at("kills").at(1).at("recovered_step").get<int>() >= 4);
}

TEST_CASE("Two ranks of a host go down with its disk, and later the job moves twice") {
  const json object = local_disks(
      "5", {"--ranks-per-host", "2", "--partners", "across-hosts", "--lose", "2+3@7:chunk-received",
            "--restart", "all@12:rotate", "--lose", "all@17:rotate"});
  REQUIRE(object.at("kills").size() == 4);
  CHECK(object.at("kills").at(0).at("source") == "holder memory");
  CHECK(object.at("kills").at(1).at("source") == "holder memory");
  CHECK(object.at("kills").at(3).at("source") == "disk");
}

TEST_CASE("Hangs, second starts and kills change nothing where hosts have disks of their own") {
  const json hung = local_disks(
      "3", {"--stop", "all@7:wake", "--twice", "10", "--stop", "1@14", "--persist-every", "1"});
  REQUIRE(hung.at("kills").size() == 2);
  CHECK(hung.at("kills").at(0).at("old_processes") == "fenced");
  CHECK(hung.at("second_starts").size() == 1);
  const json drawn = local_disks("3", {"--restarts", "2", "--kills", "2", "--seed", "1"});
  const auto starts = drawn.contains("second_starts") ? drawn.at("second_starts").size() : 0;
  CHECK(drawn.at("kills").size() + starts == 4);
}

TEST_CASE("A job on borrowed copies moves and finds its files on the hosts it left") {
  const json object =
      identical({"--disks", "local", "--mesh", "2,2", "--borrow-replicated", "--partners", "ring",
                 "--steps", "20", "--every", "4", "--lose", "all@15:rotate"});
  CHECK(object.at("kills").at(0).at("source") == "disk");
  CHECK(object.at("wrong").empty());
}

TEST_CASE("A drill of hosts with disks says where the files are, and what a lost job came from") {
  const TemporaryDirectory directory;
  const Outcome outcome = drill(directory, {"--ranks", "2", "--disks", "local", "--steps", "12",
                                            "--every", "4", "--lose", "all@11:rotate"});
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 0);
  CHECK_THAT(outcome.out,
             contains_text("images in a directory for each host, files in another), with --lose "
                           "all@11:rotate:\n"));
  CHECK_THAT(outcome.out,
             contains_text(" | noticed by nobody left, the job was started again, each "
                           "rank on the next host | step "));
}
