// What the files of a job are called, where they go, and whose state is in them.
#include <barrier>
#include <map>
#include <thread>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/state_file.hpp>
#include <meshstage/core/vault/listing.hpp>
#include <meshstage/dtensor/node.hpp>

#include "tests/nodes_replicated/sharded_job.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/disk_contents.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

constexpr int kWorld = 4;

const DeviceMesh& mesh() {
  static const DeviceMesh kMesh = DeviceMesh::from_shape({4}, {"world"});
  return kMesh;
}

Dict state_of(int rank, std::uint64_t step) {
  const auto whole = Tensor::arange<float>(22).view({11, 2});
  const auto part = DTensor::from_full(whole, mesh(), rank, parse_placements("S(0)"));
  return Dict{{"weight", dtensor::to_value(part)},
              {"rank", rank},
              {"step", static_cast<std::int64_t>(step)}};
}

NodeRegistry registry(int) {
  NodeRegistry types;
  dtensor::register_nodes(types, mesh());
  return types;
}

// Stages steps 5 and 10, each to disk, and finishes. Element r: what rank r threw.
// With `written_first` no rank begins to finish before all have written what they can.
std::vector<std::string> try_run(InProcessJob& job,
                                 const std::function<void(CheckpointerOptions&)>& options,
                                 bool written_first) {
  std::barrier everyone(kWorld);
  return run_ranks(all_ranks(kWorld), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = 1;
    options(o);
    Checkpointer ckpt(o);
    Dict state = state_of(rank, 0);
    (void)ckpt.recover(state);
    for (const std::uint64_t step : {5, 10}) stage_and_wait(ckpt, state_of(rank, step), step);
    const auto tried = [&] { return ckpt.stats().persisted + ckpt.stats().persist_failed; };
    while (written_first && tried() < 3) std::this_thread::yield();  // steps 0, 5 and 10
    everyone.arrive_and_wait();
    ckpt.finish();  // waits for the files
  });
}

void run(InProcessJob& job, const std::function<void(CheckpointerOptions&)>& options) {
  for (const auto& error : try_run(job, options, false)) CHECK(error == "");
}

// Each rank's own image and its partner's replica of the newest step are there and right.
void check_files(InProcessJob& job, const std::filesystem::path& directory) {
  const auto images = list_images(job.disk(), directory, "in-process");
  std::vector<std::string> names;
  for (const auto& image : images) {
    if (image.name.id.step == 10) names.push_back(image.path.filename().string());
  }
  REQUIRE_FALSE(images.empty());
  const std::string begin =
      "in-process.g" + std::to_string(images[0].name.id.generation) + ".s000000000010.r0000";
  std::vector<std::string> expected;
  for (int rank = 0; rank < kWorld; ++rank) {
    const std::string mine = begin + std::to_string(rank) + "of00004.";
    expected.push_back(mine + "own.safetensors");
    expected.push_back(mine + "held-by-0000" + std::to_string((rank + 2) % kWorld) +
                       ".safetensors");
  }
  CHECK(names == expected);
  for (const auto& image : images) {
    INFO(image.path);
    const Value loaded = load_state_file(job.disk(), image.path, registry(0));
    CHECK(difference(state_of(image.name.rank, image.name.id.step), loaded) == "");
    CHECK(dtensor::from_value(loaded.at("weight")).rank() == image.name.rank);
    if (image.name.holder) CHECK(*image.name.holder == (image.name.rank + 2) % kWorld);
  }
}

// Flips a byte of that rank's own image of that step, whichever slot it lies in. Returns how many
// slots held it.
int rot_own_image(InProcessJob& job, int rank, std::uint64_t step) {
  int found = 0;
  for (const auto& vault : list_vaults("/vault", job.disk())) {
    for (const auto& [key, info] : vault.slots) {
      if (vault.rank != rank || key.owner_rank != rank || info.image.identity.id.step != step)
        continue;
      ++found;
      const std::string end = "own" + std::to_string(key.index);
      const std::string mark = "-r" + std::to_string(rank) + "-";
      for (const auto& name : job.disk().list("/vault")) {
        if (name.ends_with(end) && name.find(mark) != std::string::npos)
          flip(job.disk(), "/vault/" + name, 8200);
      }
    }
  }
  return found;
}

}  // namespace

TEST_CASE("replication_persistence: in the directory that is given, own and partner's files") {
  InProcessJob job(kWorld);
  run(job, [](CheckpointerOptions& o) { o.directory = "/given/images"; });
  check_files(job, "/given/images");
  CHECK(job.disk().list("/disk").empty());
}

TEST_CASE("replication_persistence: by default in a directory of the user's and the job's") {
  InProcessJob job(kWorld);
  run(job, [](CheckpointerOptions& o) { o.directory.clear(); });
  check_files(job, default_directory("in-process"));
  CHECK(job.disk().list("/disk").empty());
}

TEST_CASE("replication_persistence: all memory is lost, and the files bring every rank back") {
  InProcessJob job(kWorld);
  run(job, [](CheckpointerOptions&) {});
  std::vector<Source> sources;
  CHECK(recover_on_all(job, state_of, 10, sources) == std::vector<std::string>(kWorld));
  CHECK(sources == std::vector<Source>(kWorld, Source::kDisk));
}

TEST_CASE("What rotted in a slot is not written to disk, and no older file goes for it") {
  InProcessJob job(kWorld);
  int rotted = 0;
  const auto errors = try_run(
      job,
      [&](CheckpointerOptions& o) {
        if (o.environment->rank != 0) return;  // the root decides when all have voted
        o.observer = [&job, &rotted](const PointEvent& e) {
          if (e.point != Point::kDecided || e.id.step != 10) return;
          rotted += rot_own_image(job, 0, 10);
        };
      },
      true);
  CHECK(rotted == 1);
  // The vaults stay: a restart recovers the step from the holder's memory.
  CHECK(errors[0].find("finish(): the newest step is not on disk") != std::string::npos);
  std::map<std::uint64_t, int> files;
  for (const auto& image : list_images(job.disk(), "/disk", "in-process")) {
    ++files[image.name.id.step];
    CHECK((image.name.id.step == 5 || image.name.rank != 0 || image.name.writer() != 0));
  }
  CHECK(files[5] == 2 * kWorld);  // every rank's own and its ward's
  CHECK(files[10] == 2 * kWorld - 1);
  CHECK(job.log().find("complete in memory but not on disk") != std::string::npos);
}
