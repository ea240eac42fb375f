// The optimizer's moments cut over a mesh: every number is what it is without one.
#include "tools/trainer/sharding.hpp"

#include <cstring>
#include <string>
#include <vector>

#include <meshstage/core/files/state_file.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/dtensor/node.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/temp_directory.hpp"
#include "tools/trainer/training.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::run_ranks;
using trainer::Sharding;

constexpr int kWorld = 4;

// What every rank saved after a few steps.
std::vector<ms::Value> train(const std::vector<std::int64_t>& mesh,
                             const std::filesystem::path& directory) {
  InProcessJob job(kWorld);
  const auto file = [&](int rank) {
    return directory / (std::to_string(mesh.size()) + "-" + std::to_string(rank) + ".safetensors");
  };
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    trainer::TrainingOptions options;
    options.text = trainer::default_text();
    options.steps = 6;
    options.every = 2;
    options.batch = 2;
    options.mesh = mesh;
    options.quiet = true;
    options.save = file(rank);
    options.checkpoint = job.options(rank);
    options.checkpoint.training_links = ms::TrainingLinks::kAll;
    trainer::Training(options).run();
  });
  for (const auto& error : errors) CHECK(error == "");
  std::vector<ms::Value> states;
  for (int rank = 0; rank < kWorld; ++rank) {
    states.push_back(ms::load_state_file(ms::real_file_system(), file(rank)));
  }
  return states;
}

}  // namespace

TEST_CASE("A part is what the mesh's last dimension cuts off, and repeats along the others") {
  const auto part = [](int rank, const ms::Shape& shape) {
    const auto p = Sharding({2, 2}, rank, 4).part(shape);
    return std::vector<std::size_t>{p.begin, p.elements};
  };
  CHECK(part(0, {5, 3}) == std::vector<std::size_t>{0, 9});
  CHECK(part(1, {5, 3}) == std::vector<std::size_t>{9, 6});
  CHECK(part(2, {5, 3}) == std::vector<std::size_t>{0, 9});
  CHECK(part(3, {5, 3}) == std::vector<std::size_t>{9, 6});
  CHECK(part(1, {1}) == std::vector<std::size_t>{1, 0});  // nothing is left for it
  CHECK_THROWS_WITH(
      Sharding({2, 3}, 0, 4),
      Catch::Matchers::Contains("a mesh of 6 ranks, but the job has 4: the product of "
                                "--mesh is the number of ranks"));
  const Sharding sharding({2, 2}, 3, 4);
  CHECK(ms::dtensor::from_value(sharding.moment({5, 3}).value).local_shard().offset ==
        std::vector<std::int64_t>{3, 0});
  CHECK(sharding.parameter({5, 3}).local.shape() == ms::Shape{5, 3});
}

TEST_CASE("Trained on a mesh of 2 by 2 the parameters are, bit for bit, those without a mesh") {
  const TempDirectory directory;
  const auto whole = train({}, directory.path());
  const auto cut = train({2, 2}, directory.path());
  int compared = 0;
  for (int rank = 0; rank < kWorld; ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    for (const auto& [key, value] : whole[r].as<ms::Dict>()) {
      const std::string& name = key.string();
      const auto a = value.as<ms::Tensor>();
      const auto b = cut[r].at(name).as<ms::Tensor>();
      INFO("rank " << rank << ", " << name);
      if (name.find("exp_avg") == std::string::npos) {
        CHECK(same_bits(a, b));
      } else {  // half of it: the upper half on ranks 0 and 2
        const std::int64_t rows = a.shape()[0] / 2;
        CHECK(same_bits(a.narrow(0, rank % 2 * rows, rows), b));
      }
      ++compared;
    }
  }
  CHECK(compared == kWorld * 26);
}
