// What the drill says: the line of a death, the object of --json, the first difference.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <meshstage/core/error/error.hpp>

#include <meshstage/core/points/points.hpp>

#include "tests/support/catch.hpp"
#include "tools/drill/compare.hpp"
#include "tools/drill/death.hpp"
#include "tools/drill/drill.hpp"
#include "tools/trainer/state.hpp"

namespace {

using namespace meshstage::tools::drill;

Death example_death() {
  Death death;
  death.fault = parse_fault(How::kKill, "2@87", 4, 200);
  death.ranks = 4;
  death.from_rank = 0;
  death.step = 87;
  death.point = "chunk-received";
  death.doing = describe_point(death.point, 3, 11);
  death.at = 1'000'000'000;
  death.noticed = {{0, 1'002'000'000}, {1, 1'006'000'000}, {3, 1'004'000'000}};
  death.settled = true;
  death.generation = 2;
  death.recovered_step = 85;
  death.source = "holder memory";
  death.resumed_at = 1'040'000'000;
  return death;
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "verdict-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  std::filesystem::path path;
};

}  // namespace

TEST_CASE("A death is told in one line") {
  Death death = example_death();
  CHECK(death.text() ==
        "rank 2 killed at step 87, receiving chunk 3/11 | noticed by 0,1,3 in 6 ms | step 85 from "
        "rank 0's memory | 2 steps redone");
  death.source = "own memory";
  death.recovered_step = 86;
  CHECK(death.text().find("| step 86 from its own memory | 1 step redone") != std::string::npos);
  death.source = "disk";
  CHECK(death.text().find("| step 86 from disk |") != std::string::npos);
  death.errors = {"peer lost"};
  CHECK(death.text().find(" as ") == std::string::npos);
  death.errors = {"peer silent", "peer lost"};
  CHECK(death.text().find("noticed by 0,1,3 in 6 ms as peer lost, peer silent | ") !=
        std::string::npos);
  death.misnamed[3] = 1;
  CHECK(death.text().find("(rank 3 named rank 1)") != std::string::npos);
  death.fault = parse_fault(How::kLose, "2@87", 4, 200);
  CHECK(death.text().rfind("rank 2 lost with its vault at step 87, ", 0) == 0);
  death.with_disk = true;
  CHECK(death.text().rfind("rank 2 lost with its vault and its host's disk at step 87, ", 0) == 0);
  death.fault = parse_fault(How::kLose, "all@87", 4, 200);
  CHECK(death.text().rfind("all ranks lost with their vaults at step 87, ", 0) == 0);
  death.source = "nothing";
  death.recovered_step = 0;
  CHECK(death.text().find("nothing was staged yet: from the start | 87 steps redone") !=
        std::string::npos);
}

TEST_CASE("What becomes of a whole job is told in one line") {
  Death death = example_death();
  const auto told = [&death](const std::string& fault, How how, int old_world = 0) {
    death.fault = parse_fault(how, fault, 4, 200);
    death.old_world = old_world;
    return death.text();
  };
  death.source = "own memory";
  CHECK(
      told("all@87", How::kRestart) ==
      "all ranks killed at step 87, receiving chunk 3/11 | the job was started anew | step 85 from "
      "their own memory | 2 steps redone");
  death.source = "holder memory";
  CHECK(
      told("all@87:rotate", How::kRestart) ==
      "all ranks killed at step 87, receiving chunk 3/11 | the job was started anew, each rank on "
      "the next host | step 85 from each other's memory | 2 steps redone");
  death.source = "disk";
  CHECK(told("all@87:ranks=1", How::kRestart, 4)
            .find("| the job was started anew, as 1 rank | step 85 put together from 4 ranks' "
                  "files |") != std::string::npos);
  CHECK(told("all@87:ranks=3", How::kRestart, 1).find("put together from 1 rank's files |") !=
        std::string::npos);
  CHECK(told("all@87:rotate", How::kLose)
            .find("| noticed by nobody left, the job was started again, each rank on the next host "
                  "| step 85 from disk |") != std::string::npos);
  death.woken = "the old processes were killed";
  CHECK(
      told("all@87", How::kStop) ==
      "all ranks stopped at step 87, receiving chunk 3/11 | the job was started anew beside them | "
      "step 85 from disk | 2 steps redone | the old processes were killed");
}

TEST_CASE("Of two that die together the one that nobody names was noticed with the other") {
  const Death named = example_death();  // rank 2, noticed by 0, 1 and 3
  Death named_now = named;
  named_now.settled = false;
  Death other = named_now;
  other.fault.rank = 3;
  other.at += 1'000'000;
  other.noticed.clear();
  CHECK(other.text().find("| noticed by nobody |") != std::string::npos);

  Witnesses found = witnesses(other, {named_now});
  CHECK(found.along_with == 2);
  CHECK(found.noticed == std::map<int, std::int64_t>{{0, 1'002'000'000}, {1, 1'006'000'000}});
  other.noticed = found.noticed;
  other.along_with = found.along_with;
  CHECK(other.text().find("| in the same generation as rank 2, whose death was noticed by 0,1 in 5 "
                          "ms | step 85") != std::string::npos);
  CHECK(other.detected_ms() == 5.0);
  // It names nobody that was itself not named, and no generation before.
  Death third = named_now;
  third.noticed.clear();
  CHECK(witnesses(third, {other}).noticed.empty());
  CHECK(witnesses(third, {named}).noticed.empty());
  // Who noticed before it died knew nothing of it.
  third.at = 1'005'000'000;
  found = witnesses(third, {named_now});
  CHECK(found.noticed == std::map<int, std::int64_t>{{1, 1'006'000'000}});
  // Its own witnesses come first.
  third.noticed = {{1, 1'009'000'000}};
  found = witnesses(third, {named_now});
  CHECK(found.noticed == std::map<int, std::int64_t>{{1, 1'009'000'000}});
  CHECK_FALSE(found.along_with.has_value());
}

TEST_CASE("Every protocol point reads as something that a rank does") {
  for (const auto point : meshstage::all_points()) {
    const std::string text = describe_point(to_string(point), 0, 0);
    INFO(text);
    CHECK(text.rfind("at ", 0) != 0);
  }
  CHECK(describe_point("", 0, 0) == "training");
}

TEST_CASE("The object of --json has the documented fields, in order") {
  Arguments arguments;
  Verdict verdict;
  verdict.result.deaths = {example_death()};
  verdict.result.final_loss = 2.25;
  verdict.result.stage_ms = {3, 1, 2};
  verdict.result.replicate_ms = {5};
  verdict.result.step_ms = {4, 4};
  verdict.result.vault_bytes = 700;
  CHECK(
      nlohmann::ordered_json::parse(to_json_text(arguments, verdict)).dump() ==
      R"({"ranks":4,"steps":200,"every":5,"device":"cpu","kills":[{"rank":2,"step":87,"point":"chunk-received",)"
      R"("how":"kill","detected_ms":6.0,"generation":2,"recovered_step":85,)"
      R"("source":"holder memory","holder":0,"resume_ms":40.0}],"identical":true,"grown":[],"wrong":[],)"
      R"("final_loss":2.25,)"
      R"("stage_ms":{"median":2.0,"max":3.0},"replicate_ms":{"median":5.0,"max":5.0},)"
      R"("step_ms":{"median":4.0},"vault_bytes":700})");
  arguments.disks = "local";
  arguments.sharded = true;
  const auto object = nlohmann::json::parse(to_json_text(arguments, verdict));
  CHECK(object.at("disks") == "local");
  CHECK(object.at("sharded") == true);
  arguments.borrow_replicated = true;
  verdict.result.sent_bytes = 20;
  verdict.result.borrowed_bytes = 300;
  CHECK(
      nlohmann::ordered_json::parse(to_json_text(arguments, verdict)).at("replica_bytes").dump() ==
      R"({"sent":20,"borrowed":300})");
  verdict.difference = "rank 0, loss of step 3: 1 against 2";
  CHECK_FALSE(nlohmann::json::parse(to_json_text(arguments, verdict)).at("identical").get<bool>());
  CHECK_FALSE(verdict.good());
  verdict.difference.reset();
  CHECK(verdict.good());
  verdict.result.grown = {"rank 1 has 12 threads in generation 3, 11 before"};
  CHECK_FALSE(verdict.good());
  verdict.result.grown.clear();
  verdict.result.wrong = {"step 4 was recovered, though step 8 was complete"};
  CHECK_FALSE(verdict.good());
  verdict.result.wrong.clear();
  verdict.result.never_happened.push_back(example_death().fault);
  CHECK_FALSE(verdict.good());
}

TEST_CASE("the JSON says of a fault of the whole job how it came back") {
  Verdict verdict;
  Death death = example_death();
  const auto written = [&](const std::string& fault, How how) {
    death.fault = parse_fault(how, fault, 4, 200);
    verdict.result.deaths = {death};
    return nlohmann::json::parse(to_json_text(Arguments(), verdict)).at("kills").at(0);
  };
  CHECK(written("all@87", How::kRestart).at("how") == "restart");
  CHECK_FALSE(written("all@87", How::kRestart).contains("seats"));
  CHECK_FALSE(written("all@87", How::kRestart).contains("ranks"));
  CHECK(written("all@87:rotate", How::kRestart).at("seats") == "next host");
  CHECK(written("all@87:ranks=3", How::kRestart).at("ranks") == 3);
  CHECK(written("all@87", How::kStop).at("old_processes") == "killed");
  CHECK(written("all@87:wake", How::kStop).at("old_processes") == "fenced");
  CHECK_FALSE(written("1@87", How::kStop).contains("old_processes"));
  verdict.result.second_starts = {{.step = 40, .ranks = 4, .refused_ms = 812.5},
                                  {.step = 60, .at_once = true, .ranks = 4, .refused_ms = 2}};
  verdict.result.worlds = {{4, 0}, {3, 85}};
  const auto object = nlohmann::json::parse(to_json_text(Arguments(), verdict));
  CHECK(object.at("second_starts").dump() ==
        R"([{"refused_ms":812.5,"step":40},{"at_once":true,"refused_ms":2.0,"step":60}])");
  CHECK(object.at("worlds").dump() == R"([{"from_step":0,"ranks":4},{"from_step":85,"ranks":3}])");
}

TEST_CASE("The first difference of two saved states is named by step or element, to the last bit") {
  const TemporaryDirectory directory;
  trainer::ModelSize size;
  size.vocabulary = 5;
  size.context = 2;
  size.embedding = 3;
  size.hidden = 16;
  const trainer::CharacterModel<float> model(size);
  trainer::TrainingState state(model, 4, 1, 0);
  const auto whole = directory.path / "whole.safetensors";
  const auto other = directory.path / "other.safetensors";
  state.save(whole);
  state.save(other);
  CHECK_FALSE(first_difference(whole, other).has_value());

  const auto changed = [&](float& value) {
    const float before = value;
    value = before == 0 ? -0.0F : -before;
    state.save(other);
    value = before;
    return first_difference(whole, other).value_or("none");
  };
  CHECK(changed(state.exp_avg()[2][7]) == "optimizer.exp_avg.hidden1.bias[7]: 0 against -0");
  CHECK(changed(state.parameters()[3][16 * 4 + 9]).rfind("model.hidden2.weight[4, 9]: ", 0) == 0);
  CHECK(changed(state.losses()[2]) == "loss of step 3: 0 against -0");
  CHECK(changed(state.rank_losses()[0]) == "own loss of step 1: 0 against -0");
  state.step = 3;
  state.save(other);
  CHECK(first_difference(whole, other) ==
        std::optional<std::string>("optimizer.step: 0 against 3"));
  CHECK_THROWS_AS(first_difference(whole, directory.path / "none"), meshstage::NotFound);
  std::ofstream(other) << "not such a file";
  CHECK_THROWS_AS(first_difference(whole, other), meshstage::CorruptData);
}

TEST_CASE("Moments that are cut over the ranks are compared with the whole ones") {
  const TemporaryDirectory directory;
  trainer::ModelSize size;
  size.vocabulary = 5;  // over two ranks: 3 and 2
  size.context = 2;
  size.embedding = 3;
  size.hidden = 16;
  const trainer::CharacterModel<float> model(size);
  const trainer::Sharding first(std::vector<std::int64_t>{2}, 0, 2);
  const trainer::Sharding second(std::vector<std::int64_t>{2}, 1, 2);
  trainer::TrainingState whole(model, 4, 1, 0);
  trainer::TrainingState parts[] = {{model, 4, 1, 0, &first}, {model, 4, 1, 0, &second}};
  std::vector<std::filesystem::path> files;
  for (std::size_t rank = 0; rank < 2; ++rank) {
    files.push_back(directory.path / std::to_string(rank));
    for (std::size_t p = 0; p < whole.exp_avg().size(); ++p) {
      const auto [begin, elements] = parts[rank].parts()[p];
      for (std::size_t i = 0; i < elements; ++i) {
        const float value = static_cast<float>(begin + i) + 0.5F;
        parts[rank].exp_avg()[p][i] = whole.exp_avg()[p][begin + i] = value;
      }
    }
    parts[rank].save(files[rank]);
  }
  const auto of_whole = directory.path / "whole";
  whole.save(of_whole);
  CHECK_FALSE(first_difference(of_whole, files[1], files).has_value());
  CHECK(first_difference(of_whole, files[1]) ==
        std::optional<std::string>("optimizer.exp_avg.embedding.weight: F32[5, 3] against "
                                   "F32[2, 3]"));
  CHECK(first_difference(of_whole, files[1], {files[1], files[0]})
            .value_or("none")
            .rfind("optimizer.exp_avg.embedding.weight[0, 0]: 0.5 against ", 0) == 0);
  CHECK(first_difference(of_whole, files[1], {files[0]}).has_value());
  parts[1].exp_avg_sq()[0][4] = 7;
  parts[1].save(files[1]);
  CHECK(first_difference(of_whole, files[0], files) ==
        std::optional<std::string>("optimizer.exp_avg_sq.embedding.weight[4, 1]: 0 against 7"));
}
