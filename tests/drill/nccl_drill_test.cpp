// Drills whose gradients are averaged over NCCL on the device: the fakes, in every process.
#include <fstream>
#include <string>

#include "tests/drill/drills.hpp"

namespace {

using drill_runs::drill;
using drill_runs::identical;
using drill_runs::Outcome;
using drill_runs::run;
using drill_runs::TemporaryDirectory;
using drill_runs::Words;

const std::string kFakeCuda = "LD_LIBRARY_PATH=" MESHSTAGE_FAKE_CUDA_FOLDER;
const Words kFakes{kFakeCuda + ":" MESHSTAGE_FAKE_NCCL_FOLDER};

nlohmann::json over_nccl(const Words& fault) {
  Words words{"--ranks",  "3",    "--steps",       "16",  "--every", "4",
              "--device", "cuda", "--collectives", "nccl"};
  words.insert(words.end(), fault.begin(), fault.end());
  auto object = identical(words, kFakes);
  CHECK(object.at("collectives") == "nccl");
  return object;
}

}  // namespace

TEST_CASE("A rank is killed while gradients are averaged over NCCL, and every bit is right") {
  const auto kill = over_nccl({"--kill", "1@11"}).at("kills").at(0);
  CHECK(kill.at("recovered_step") == 8);
  CHECK(kill.at("source") == "own memory");
}

TEST_CASE("A host of a job over NCCL is lost, rank 0's too") {
  CHECK(over_nccl({"--lose", "2@11"}).at("kills").at(0).at("source") == "holder memory");
  CHECK(over_nccl({"--lose", "0@11"}).at("kills").at(0).at("source") == "holder memory");
}

TEST_CASE("A rank of a job over NCCL hangs, is replaced, and wakes up as fenced") {
  CHECK(over_nccl({"--stop", "2@11"}).at("kills").at(0).at("how") == "stop");
}

TEST_CASE("Without a usable NCCL the commands say why and exit with 3") {
  const TemporaryDirectory directory;
  const TemporaryDirectory broken;
  std::ofstream(broken.path() / "libnccl.so.2") << "no library";
  const Words none{kFakeCuda + ":" + broken.path().string()};
  const Words options{"--device", "cuda", "--collectives", "nccl"};
  const auto refused = [](const Outcome& outcome) {
    INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
    CHECK(outcome.code == 3);
    CHECK(outcome.out.empty());
    CHECK_THAT(outcome.err, contains_text("--collectives nccl cannot be used: no NCCL: ") &&
                                contains_text("LD_LIBRARY_PATH"));
  };
  refused(drill(directory, options, none));
  refused(run(MESHSTAGE_TRAINER, options, std::chrono::seconds(60), none));
}

TEST_CASE("Collectives over NCCL need a device, and are called nccl") {
  const TemporaryDirectory directory;
  const auto wrong = [&](const Words& options, const std::string& why) {
    const auto outcome = drill(directory, options, kFakes);
    INFO(outcome.err);
    CHECK(outcome.code == 2);
    CHECK_THAT(outcome.err, contains_text(why));
  };
  wrong({"--collectives", "nccl"}, "give --device cuda");
  wrong({"--device", "cuda", "--collectives", "mpi"}, "write host or nccl");
}
