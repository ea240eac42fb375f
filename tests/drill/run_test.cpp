// Drills as a user types them: real processes, real signals.
#include <set>
#include <string>

#include "tests/drill/drills.hpp"

namespace {

using drill_runs::clean_run;
using drill_runs::drill;
using drill_runs::identical;
using drill_runs::Outcome;
using drill_runs::run;
using drill_runs::TemporaryDirectory;
using drill_runs::vaults_of;
using drill_runs::Words;
using nlohmann::json;

const Words kSmall{"--ranks", "3", "--steps", "40", "--every", "4"};

Words small(const Words& faults) {
  Words words = kSmall;
  words.insert(words.end(), faults.begin(), faults.end());
  return words;
}

}  // namespace

TEST_CASE("A rank that is killed between two checkpoints comes back, and nothing changes") {
  const json object = identical(small({"--kill", "1@23"}));
  REQUIRE(object.at("kills").size() == 1);
  const json kill = object.at("kills").at(0);
  CHECK(kill.at("rank") == 1);
  CHECK(kill.at("step") == 23);
  CHECK(kill.at("how") == "kill");
  CHECK(kill.at("source") == "own memory");
  CHECK(kill.at("generation") == 2);
  CHECK(kill.at("recovered_step") == 20);
  CHECK(kill.at("detected_ms").is_number());
  CHECK(object.at("final_loss").get<double>() < 4.0);
  CHECK(object.at("stage_ms").at("median").get<double>() > 0);
  CHECK(object.at("replicate_ms").at("max").get<double>() > 0);
}

TEST_CASE("A rank may die at any point of staging, replicating and agreeing") {
  for (const std::string point :
       {"own-writing", "offered", "replica-writing", "chunk-sent", "chunk-received", "own-sealed",
        "replica-sealed", "voted", "complete"}) {
    INFO(point);
    const json object =
        identical({"--ranks", "3", "--steps", "20", "--every", "4", "--kill", "2@9:" + point});
    const json kill = object.at("kills").at(0);
    CHECK(kill.at("point") == point);
    CHECK(kill.at("recovered_step").get<int>() >= 8);
    CHECK(kill.at("source") == "own memory");
  }
}

TEST_CASE("The root of the agreement may die as it decides") {
  const json object =
      identical({"--ranks", "3", "--steps", "20", "--every", "4", "--kill", "0@9:decided"});
  CHECK(object.at("kills").at(0).at("point") == "decided");
}

TEST_CASE("A second rank may die while the others recover from the first") {
  for (const std::string point : {"claimed", "choice-learned", "ready-to-restore", "restoring"}) {
    INFO(point);
    const json object = identical({"--ranks", "3", "--steps", "20", "--every", "4", "--kill",
                                   "1@11", "--kill", "2@10:" + point});
    REQUIRE(object.at("kills").size() == 2);
  }
}

TEST_CASE("A rank whose host is lost comes back from its holder's memory") {
  const json object = identical(small({"--lose", "2@23"}));
  const json kill = object.at("kills").at(0);
  CHECK(kill.at("how") == "lose");
  CHECK(kill.at("source") == "holder memory");
  CHECK(kill.at("recovered_step") == 20);
}

TEST_CASE("Over four connections to each rank, a kill, a lost host and a hang change nothing") {
  const Words job{"--connections", "4", "--ranks", "3", "--steps", "24", "--every", "4"};
  const auto with = [&job](const Words& faults) {
    Words words = job;
    words.insert(words.end(), faults.begin(), faults.end());
    return identical(words);
  };
  const json lost = with({"--kill", "0@6:chunk-sent", "--lose", "2@13:chunk-received"});
  REQUIRE(lost.at("kills").size() == 2);
  CHECK(lost.at("kills").at(0).at("source") == "own memory");
  CHECK(lost.at("kills").at(1).at("source") == "holder memory");
  const json hung = with({"--stop", "1@9:chunk-received", "--deadline-ms", "2000"});
  CHECK(hung.at("kills").at(0).at("how") == "stop");
}

TEST_CASE("With two copies, two ranks whose hosts are lost at once come back from memory") {
  const json object = identical(
      {"--ranks", "5", "--copies", "2", "--steps", "16", "--every", "4", "--lose", "1+3@11"});
  REQUIRE(object.at("kills").size() == 2);
  std::set<int> ranks;  // with one copy rank 3 would hold rank 1's
  for (const auto& kill : object.at("kills")) {
    ranks.insert(kill.at("rank").get<int>());
    CHECK(kill.at("source") == "holder memory");
    CHECK(kill.at("recovered_step").get<int>() >= 4);
    CHECK(kill.at("generation") == 2);          // one recovery for both
    CHECK(kill.at("detected_ms").is_number());  // though the survivors named one of the two
  }
  CHECK(ranks == std::set<int>{1, 3});
}

TEST_CASE("With copies across hosts, two hosts of three are lost at once, the root's too") {
  const json object =
      identical({"--ranks", "6", "--ranks-per-host", "2", "--partners", "across-hosts", "--copies",
                 "2", "--steps", "12", "--every", "3", "--lose", "0+1+2+3@9"});
  REQUIRE(object.at("kills").size() == 4);
  for (const auto& kill : object.at("kills")) {
    CHECK(kill.at("source") == "holder memory");
    CHECK(kill.at("recovered_step").get<int>() >= 3);
    CHECK(kill.at("generation") == 2);
  }
}

TEST_CASE("On a mesh of 2 by 2 the cut optimizer comes back, and training ends the same") {
  const json whole = identical({"--steps", "12", "--every", "3", "--kill", "2@5"});
  const json cut = identical({"--mesh", "2,2", "--steps", "12", "--every", "3", "--lose", "1@8"});
  CHECK(cut.at("ranks") == 4);
  CHECK(cut.at("kills").at(0).at("source") == "holder memory");
  // Each number is computed as without a mesh.
  CHECK(cut.at("final_loss") == whole.at("final_loss"));
}

TEST_CASE(
    "What the mesh repeats on another host is in no copy, and a lost rank gets it from there") {
  // In a ring rank 2 holds what rank 1 leaves, and rank 3 has the rest.
  const Words job{"--mesh", "2,2", "--partners", "ring", "--steps", "24", "--every", "3"};
  const auto lose = [&job](const Words& more) {
    Words words = job;
    words.insert(words.end(), {"--lose", "1@17"});
    words.insert(words.end(), more.begin(), more.end());
    return identical(words);
  };
  const json whole = lose({});
  const json spare = lose({"--borrow-replicated"});
  // Parameters and moments are the same on ranks 1 and 3; the losses of each rank are not.
  const auto& bytes = spare.at("replica_bytes");
  CHECK(bytes.at("borrowed").get<double>() > 10 * bytes.at("sent").get<double>());
  // Two images and two copies a rank; now the copies are next to nothing.
  CHECK(spare.at("vault_bytes").get<double>() < 0.6 * whole.at("vault_bytes").get<double>());
  const json kill = spare.at("kills").at(0);
  CHECK(kill.at("source") == "holder memory");
  CHECK(kill.at("holder") == 2);
  CHECK(kill.at("recovered_step") == 15);
}

TEST_CASE("An owner lost with a lender of its copies comes back from disk") {
  // Ranks 1 and 3 have it for each other; rank 2, which holds a copy of 1, lives on.
  const json object = identical({"--mesh", "2,2", "--borrow-replicated", "--partners", "ring",
                                 "--steps", "20", "--every", "4", "--lose", "1+3@15"});
  REQUIRE(object.at("kills").size() == 2);
  for (const auto& kill : object.at("kills")) {
    CHECK(kill.at("source") == "disk");
    CHECK(kill.at("recovered_step").get<int>() >= 8);  // every one is persisted
  }
}

TEST_CASE("With copies that lack something the job starts again, from vaults and from disk") {
  for (const std::string how : {"--kill", "--lose"}) {
    INFO(how);
    const json object = identical(
        {"--mesh", "2,2", "--borrow-replicated", "--steps", "20", "--every", "4", how, "all@15"});
    CHECK(object.at("kills").at(0).at("source") == (how == "--kill" ? "own memory" : "disk"));
  }
}

TEST_CASE("A rank that hangs is replaced, and ends by itself when it wakes up") {
  const json object = identical(small({"--stop", "1@14", "--deadline-ms", "2000"}));
  const json kill = object.at("kills").at(0);
  CHECK(kill.at("how") == "stop");
  // Its replacement reads what the stopped process's vault holds; that process may not write there
  // any more.
  CHECK(kill.at("source") == "own memory");
  CHECK(kill.at("recovered_step") == 12);
  CHECK(kill.at("detected_ms").get<double>() < 15000);
}

TEST_CASE("The whole job starts again from its own vaults") {
  const json object = identical(small({"--kill", "all@23"}));
  const json kill = object.at("kills").at(0);
  CHECK(kill.at("rank") == "all");
  CHECK(kill.at("source") == "own memory");
  CHECK(kill.at("recovered_step") == 20);
}

TEST_CASE("The whole job starts again from disk where all memory is lost") {
  const json object = identical(small({"--lose", "all@23"}));
  const json kill = object.at("kills").at(0);
  CHECK(kill.at("rank") == "all");
  CHECK(kill.at("source") == "disk");
  CHECK(kill.at("recovered_step").get<int>() >= 4);
}

TEST_CASE("A job of one rank comes back from its own memory") {
  const json object = identical({"--ranks", "1", "--steps", "20", "--kill", "0@13"});
  CHECK(object.at("kills").at(0).at("source") == "own memory");
  CHECK(object.at("kills").at(0).at("recovered_step") == 10);
}

TEST_CASE("Deaths before anything was staged start the job from its beginning") {
  const json object = identical(small({"--kill", "1@2"}));
  CHECK(object.at("kills").at(0).at("recovered_step") == 0);
}

TEST_CASE("Kills drawn from a seed end identical too") {
  const json object = identical(small({"--kills", "3", "--seed", "5"}));
  CHECK(object.at("kills").size() == 3);
}

TEST_CASE("Without --json the drill tells each death in a line and ends with its verdict") {
  const TemporaryDirectory directory;
  const Outcome outcome = drill(directory, {"--ranks", "2", "--steps", "20", "--kill", "1@13"});
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 0);
  CHECK(outcome.out.find("  rank 1 killed at step 13, ") != std::string::npos);
  CHECK(outcome.out.find(" | noticed by 0 in ") != std::string::npos);
  CHECK(outcome.out.find(" | step 10 from its own memory | 3 steps redone\n") != std::string::npos);
  const std::string verdict = "IDENTICAL: 20 steps, 2 ranks, every bit\n";
  REQUIRE(outcome.out.size() > verdict.size());
  CHECK(outcome.out.substr(outcome.out.size() - verdict.size()) == verdict);
  CHECK(outcome.out.find('\r') == std::string::npos);
}

TEST_CASE("Staging every step while every one of them goes to disk, nobody waits for ever") {
  const TemporaryDirectory directory;
  const Outcome outcome =
      drill(directory, {"--ranks", "4", "--steps", "60", "--every", "1", "--persist-every", "1",
                        "--deadline-ms", "10000", "--kill", "1@7"});
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 0);
  CHECK(outcome.out.find("note:") == std::string::npos);  // nobody gave anybody up without a cause
}

TEST_CASE("A fault that cannot come makes the drill fail and is named") {
  const TemporaryDirectory directory;
  const Outcome outcome =
      drill(directory, {"--ranks", "2", "--steps", "8", "--every", "4", "--kill", "1@8:fetched"});
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 1);
  CHECK(outcome.out.find("--kill 1@8:fetched never happened") != std::string::npos);
}

TEST_CASE("An interrupted drill takes everything down with it") {
  const TemporaryDirectory directory;
  const Outcome outcome = clean_run(
      directory, {"drill", "--dir", directory.path(), "--steps", "100000", "--kill", "0@99999"},
      std::chrono::seconds(60), {}, "undisturbed");
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 130);
}

TEST_CASE("The trainer runs under mpirun as it stands") {
  const TemporaryDirectory directory;
  const std::string at = directory.path();
  const Outcome outcome = run(
      "mpirun",
      {"-n", "4", "--oversubscribe", MESHSTAGE_TRAINER, "--job", "drill-mpirun", "--steps", "30",
       "--dir", at + "/persisted", "--store", "file:" + at + "/store", "--vault", at + "/vault"},
      std::chrono::seconds(120), {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"});
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 0);
  CHECK(outcome.out.find("step   30/30  loss ") != std::string::npos);
  CHECK(vaults_of("drill-mpirun").empty());
}
