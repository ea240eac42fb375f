// Faults of the whole job, as a user types them: real processes, real signals.
#include <string>
#include <vector>

#include "tests/drill/drills.hpp"

namespace {

using drill_runs::drill;
using drill_runs::identical;
using drill_runs::Outcome;
using drill_runs::TemporaryDirectory;
using drill_runs::Words;
using nlohmann::json;

Words job_of(const std::string& ranks, const Words& faults) {
  Words words{"--ranks", ranks, "--steps", "20", "--every", "4"};
  words.insert(words.end(), faults.begin(), faults.end());
  return words;
}

/// Of a drill with one fault of the whole job.
json only_death(const json& object) {
  REQUIRE(object.at("kills").size() == 1);
  const json death = object.at("kills").at(0);
  CHECK(death.at("rank") == "all");
  CHECK(object.at("wrong").empty());
  return death;
}

}  // namespace

TEST_CASE("A job whose ranks are all killed is started anew on the same seats") {
  for (const std::string point : {"", ":chunk-received", ":voted", ":persisted"}) {
    INFO(point);
    const json death =
        only_death(identical(job_of("3", {"--restart", "all@11" + point, "--persist-every", "1"})));
    CHECK(death.at("how") == "restart");
    CHECK(death.at("source") == "own memory");
    CHECK(death.at("recovered_step").get<int>() >= 4);  // 8 may not be complete yet
  }
}

TEST_CASE("Each rank finds its images on the host that it left") {
  // Of four ranks the third from each one holds its images, and not the next one.
  const json death = only_death(identical(job_of("4", {"--restart", "all@11:rotate"})));
  CHECK(death.at("seats") == "next host");
  CHECK(death.at("source") == "holder memory");
  CHECK(death.at("recovered_step").get<int>() >= 4);
}

TEST_CASE("Ranks that moved twice find what they left, also two to a host") {
  const json object = identical(job_of("4", {"--ranks-per-host", "2", "--restart", "all@7:rotate",
                                             "--restart", "all@14:offered:rotate"}));
  REQUIRE(object.at("kills").size() == 2);
  CHECK(object.at("wrong").empty());
}

TEST_CASE("Fewer ranks go on from what more ranks had, and more from what fewer had") {
  const json fewer = identical(job_of("4", {"--restart", "all@11:ranks=2"}));
  const int step = only_death(fewer).at("recovered_step").get<int>();
  CHECK(step >= 4);
  CHECK(fewer.at("worlds") == json::parse(R"([{"ranks":4,"from_step":0},{"ranks":2,"from_step":)" +
                                          std::to_string(step) + "}]"));
  const json more = identical(job_of("2", {"--restart", "all@11:own-sealed:ranks=3"}));
  CHECK(only_death(more).at("ranks") == 3);
  CHECK(more.at("worlds").at(1).at("ranks") == 3);
  // What a rank of before had of its own it goes on with; the results would differ otherwise.
  CHECK(fewer.at("final_loss") != more.at("final_loss"));
}

TEST_CASE("Ranks that write no files go on as fewer and as more, from memory alone") {
  const json object = identical(
      job_of("4", {"--persist-every", "0", "--restart", "all@6:ranks=3", "--restart",
                   "all@9:own-sealed:ranks=5", "--restart", "all@14:ranks=2", "--sharded"}));
  REQUIRE(object.at("kills").size() == 3);
  CHECK(object.at("wrong").empty());
  CHECK(object.at("worlds").size() == 4);
  std::vector<int> steps;
  for (const auto& death : object.at("kills")) {
    CHECK(death.at("source") == "holder memory");
    steps.push_back(death.at("recovered_step").get<int>());
  }
  CHECK(steps.at(0) == 4);
  CHECK(steps.at(1) == 8);  // it is decided before step 12 is staged
  CHECK(steps.at(2) >= 8);  // step 12 may not be complete yet
}

TEST_CASE("A job goes from three ranks to two and back, and another rank is killed then") {
  const json object = identical(
      job_of("3", {"--restart", "all@7:ranks=2", "--restart", "all@13:ranks=3", "--kill", "2@18"}));
  REQUIRE(object.at("kills").size() == 3);
  CHECK(object.at("worlds").size() == 3);
  CHECK(object.at("kills").at(2).at("source") == "own memory");
}

TEST_CASE("Ranks of another number find what lies on hosts of their own, also after they moved") {
  const json object =
      identical(job_of("4", {"--restart", "all@6:rotate", "--restart", "all@10:ranks=3",
                             "--restart", "all@14:rotate", "--restart", "all@18:ranks=5"}));
  REQUIRE(object.at("kills").size() == 4);
  CHECK(object.at("wrong").empty());
  CHECK(object.at("worlds").size() == 3);
}

TEST_CASE("Another number of ranks finds what lies on the disks of hosts of their own") {
  const Words disks{"--disks", "local", "--ranks-per-host", "1", "--partners", "across-hosts"};
  for (const std::string ranks : {"2", "3", "6"}) {
    INFO(ranks);
    Words words = disks;
    words.insert(words.end(), {"--restart", "all@11:ranks=" + ranks, "--sharded"});
    const json death = only_death(identical(job_of("4", words)));
    CHECK(death.at("source") == "disk");
    CHECK(death.at("recovered_step").get<int>() >= 4);
  }
}

TEST_CASE("Moments that are cut over the ranks go from 4 to 3, 6, 1 and 8 ranks") {
  const json object = identical({"--sharded", "--ranks", "4", "--steps", "16", "--every", "2",
                                 "--restart", "all@5:ranks=3", "--restart", "all@8:ranks=6",
                                 "--restart", "all@11:ranks=1", "--restart", "all@14:ranks=8"});
  CHECK(object.at("wrong").empty());
  REQUIRE(object.at("kills").size() == 4);
  const auto& worlds = object.at("worlds");
  REQUIRE(worlds.size() == 5);
  for (std::size_t i = 1; i < worlds.size(); ++i) {
    CHECK(worlds.at(i).at("ranks") == object.at("kills").at(i - 1).at("ranks"));
    CHECK(worlds.at(i).at("from_step").get<int>() >= 2);  // the newest may not be complete yet
  }
}

TEST_CASE("A rank that has nothing of a tensor that is cut gets its part again with fewer ranks") {
  // Of 16 rows each of five ranks has 3, the next one 1, and the last one none.
  const json object =
      identical({"--sharded", "--ranks", "2", "--steps", "12", "--every", "2", "--restart",
                 "all@5:ranks=7", "--restart", "all@9:ranks=3", "--kill", "2@11"});
  CHECK(object.at("wrong").empty());
  CHECK(object.at("worlds").size() == 3);
}

TEST_CASE("A job that hangs is started anew beside its old processes, which then are killed") {
  for (const std::string point : {"", ":chunk-sent"}) {
    INFO(point);
    const json death = only_death(identical(job_of("3", {"--stop", "all@10" + point})));
    CHECK(death.at("how") == "stop");
    CHECK(death.at("old_processes") == "killed");
    CHECK(death.at("recovered_step").get<int>() >= 4);  // 8 may not be complete yet
  }
}

TEST_CASE("The old processes of a job that hung are woken up, and end because they are fenced") {
  for (const std::string ranks : {"1", "3"}) {
    INFO(ranks << " ranks");
    const json death = only_death(identical(job_of(ranks, {"--stop", "all@10:wake"})));
    CHECK(death.at("old_processes") == "fenced");
    CHECK(death.at("recovered_step").get<int>() >= 4);
  }
}

TEST_CASE("Old processes that are woken up do nothing to themselves any more") {
  // Rank 1 of those begins step 11, too.
  const json object = identical(job_of("2", {"--stop", "all@10:wake", "--kill", "1@11"}));
  REQUIRE(object.at("kills").size() == 2);
  CHECK(object.at("kills").at(0).at("old_processes") == "fenced");
}

TEST_CASE("A second start beside the healthy job is refused, and the job does not notice") {
  for (const std::string ranks : {"1", "3"}) {
    INFO(ranks << " ranks");
    const json object = identical(job_of(ranks, {"--twice", "10", "--kill", "0@15"}));
    REQUIRE(object.at("second_starts").size() == 1);
    CHECK(object.at("second_starts").at(0).at("step") == 10);
    CHECK(object.at("second_starts").at(0).at("refused_ms").get<double>() > 0);
    REQUIRE(object.at("kills").size() == 1);  // no death but the one asked for
    CHECK(object.at("kills").at(0).at("recovered_step").get<int>() >= 8);
  }
}

TEST_CASE("Of two starts at the same moment one gets the job, the other is refused") {
  for (const std::string fault : {"--restart", "--stop"}) {
    INFO(fault);
    const json object = identical(job_of("3", {fault, "all@11:twice", "--kill", "1@16"}));
    REQUIRE(object.at("second_starts").size() == 1);
    CHECK(object.at("second_starts").at(0).at("at_once") == true);
    REQUIRE(object.at("kills").size() == 2);
    CHECK(object.at("kills").at(0).at("recovered_step").get<int>() >= 4);
  }
}

TEST_CASE("A new start takes the place of two that began at the same moment") {
  // At that point it is not settled yet which of the two has the job, or that the other was
  // refused. Either one may win, so several times.
  for (int i = 0; i < 4; ++i) {
    for (const std::string point : {"formed", "claimed"}) {
      INFO(point << ", time " << i);
      const json object = identical(job_of("3", {"--restart", "all@10:twice", "--restart",
                                                 "all@10:" + point, "--deadline-ms", "2000"}));
      CHECK(object.at("wrong").empty());
      CHECK(object.at("kills").size() == 2);
    }
  }
}

TEST_CASE("Half of the ranks are killed and half hang, and a new start goes on elsewhere") {
  const json death = only_death(identical(job_of("4", {"--stop", "all@10:half:wake:swap"})));
  CHECK(death.at("seats") == "swapped");
  CHECK(death.at("old_processes") == "fenced");
  CHECK(death.at("recovered_step").get<int>() >= 4);  // 8 may not be complete yet
}

TEST_CASE("A rank that dies right behind a second start trains that step again with the others") {
  const json object = identical(job_of("3", {"--twice", "10", "--kill", "2@11"}));
  REQUIRE(object.at("second_starts").size() == 1);
  REQUIRE(object.at("kills").size() == 1);
  CHECK(object.at("kills").at(0).at("recovered_step").get<int>() == 8);
}

TEST_CASE("Each fault of the whole job is told in a line") {
  const TemporaryDirectory directory;
  const Outcome outcome =
      drill(directory, {"--ranks", "2", "--steps", "26", "--every", "8", "--restart",
                        "all@15:ranks=3", "--twice", "16", "--stop", "all@23:wake"});
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.code == 0);
  for (const char* line :
       {" | the job was started anew, as 3 ranks | step 8 put together from 2 ranks' files | 7 "
        "steps "
        "redone\n",
        "  started a second time at step 16 | refused on all 3 ranks in ",
        " ms: start-2 is running, take_over would take the job | the job went on\n",
        " | the job was started anew beside them | step 16 from their own memory | 7 steps redone "
        "| "
        "woken up, the old processes ended by themselves: fenced\n",
        "undisturbed, without checkpoints, steps 9 to 26 as 3 ranks:\n",
        "IDENTICAL: 26 steps, 2, then 3 ranks, every bit\n"}) {
    CHECK_THAT(outcome.out, contains_text(line));
  }
}

TEST_CASE("Faults of the whole job that are drawn from a seed end identical, too") {
  for (const std::string seed : {"1", "2"}) {
    INFO("seed " << seed);
    const json object = identical(job_of("3", {"--restarts", "3", "--kills", "1", "--seed", seed}));
    const auto starts = object.contains("second_starts") ? object.at("second_starts").size() : 0;
    CHECK(object.at("kills").size() + starts == 4);
    CHECK(object.at("wrong").empty());
  }
}
