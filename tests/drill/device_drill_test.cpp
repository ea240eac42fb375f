// Drills, trainers and benches whose state is on a device: the fake driver's, in every process.
#include <string>

#include "tests/drill/drills.hpp"

namespace {

using drill_runs::drill;
using drill_runs::identical;
using drill_runs::Outcome;
using drill_runs::run;
using drill_runs::TemporaryDirectory;
using drill_runs::Words;

const Words kFake{"LD_LIBRARY_PATH=" MESHSTAGE_FAKE_CUDA_FOLDER};
// No device, whether there is a driver or not.
const Words kNone{"CUDA_VISIBLE_DEVICES=-1"};

Words on_device(const Words& more) {
  Words words{"--ranks", "3", "--steps", "16", "--every", "4", "--device", "cuda"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace

TEST_CASE("A rank with its state on a device is killed, and every bit is that of a run without") {
  const auto object = identical(on_device({"--kill", "1@11"}), kFake);
  CHECK(object.at("device") == "cuda");
  const auto kill = object.at("kills").at(0);
  CHECK(kill.at("recovered_step") == 8);
  CHECK(kill.at("source") == "own memory");
}

TEST_CASE("A rank's device comes back from its holder's memory, and from the disk") {
  const auto lost = identical(on_device({"--lose", "2@11"}), kFake);
  CHECK(lost.at("kills").at(0).at("source") == "holder memory");
  const auto all = identical(on_device({"--lose", "all@11"}), kFake);
  CHECK(all.at("kills").at(0).at("source") == "disk");
}

TEST_CASE("A rank that hangs with its state on a device is replaced") {
  const auto object = identical(on_device({"--stop", "0@11"}), kFake);
  CHECK(object.at("kills").at(0).at("how") == "stop");
}

TEST_CASE("Tensors of a mesh may be on a device") {
  const auto object = identical(
      {"--mesh", "2,2", "--steps", "12", "--every", "4", "--device", "cuda", "--kill", "1@7"},
      kFake);
  CHECK(object.at("ranks") == 4);
}

TEST_CASE("Without a usable device the commands say why and exit with 3") {
  const TemporaryDirectory directory;
  const auto refused = [](const Outcome& outcome, const std::string& why) {
    INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
    CHECK(outcome.code == 3);
    CHECK(outcome.out.empty());
    CHECK_THAT(outcome.err, contains_text("--device cuda") && contains_text(why));
    CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  };
  const auto limit = std::chrono::seconds(60);
  const std::string why = "cannot be used: ";
  refused(drill(directory, {"--device", "cuda"}, kNone), why);
  for (const std::string what : {"stage", "replicate", "recover"})
    refused(run(MESHSTAGE_COMMAND, {"bench", what, "--device", "cuda"}, limit, kNone), why);
  for (const std::string what : {"launch", "notice"})
    refused(run(MESHSTAGE_COMMAND, {"bench", what}, limit, kNone), why);
  refused(run(MESHSTAGE_TRAINER, {"--device", "cuda", "--steps", "1"}, limit, kNone), why);
  refused(drill(directory, {"--device", "cuda:9"}, kFake), "devices, counted from 0");
}

TEST_CASE("A device that nothing is called is wrong use") {
  const TemporaryDirectory directory;
  for (const std::string text : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda1"}) {
    const auto outcome = drill(directory, {"--device", text}, kFake);
    INFO(text << ": " << outcome.err);
    CHECK(outcome.code == 2);
    CHECK_THAT(outcome.err, contains_text("write cpu, cuda or cuda:1"));
  }
}

TEST_CASE("Benches of a state on a device report the trainer's blocked time") {
  const TemporaryDirectory directory;
  for (const std::string what : {"stage", "replicate", "recover"}) {
    const auto outcome = run(MESHSTAGE_COMMAND,
                             {"bench", what, "--device", "cuda", "--workload", "small", "--scale",
                              "0.01", "--repeat", "2", "--dir", directory.path(), "--json"},
                             std::chrono::seconds(120), kFake);
    INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
    REQUIRE(outcome.code == 0);
    const auto json = nlohmann::json::parse(outcome.out);
    CHECK(json.at("device") == "cuda:0");
    CHECK(json.at("s").at(0) > 0);
    CHECK(json.at("limit_s").at(0) > 0);
    if (what != "recover") CHECK(json.at("parts").at("trainer blocked") > 0);
  }
}

TEST_CASE("Launches beside page-locking are measured, and when a killed process is noticed") {
  const TemporaryDirectory directory;
  const auto bench = [&](const std::string& what) {
    const auto outcome = run(MESHSTAGE_COMMAND,
                             {"bench", what, "--lock", "8000000", "--repeat", "2", "--dir",
                              directory.path(), "--vault", directory.path(), "--json"},
                             std::chrono::seconds(120), kFake);
    INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
    REQUIRE(outcome.code == 0);
    CHECK(directory.entries().empty());
    return nlohmann::json::parse(outcome.out);
  };
  const auto launch = bench("launch");
  for (const std::string when : {"quiet", "locking here", "locking elsewhere"})
    CHECK(launch.at("parts").at(when + ": done p99") >= 0);
  const auto notice = bench("notice");
  CHECK(notice.at("repeat") == 2);
  for (const auto* const part : {"lock free", "process ended", "limit: lock free"})
    CHECK(notice.at("parts").at(part) > 0);
}
