// A checkpoint in several files, as model hubs have it, is one state to the commands.
#include <fstream>
#include <string>

#include <meshstage/core/files/state_file.hpp>

#include "tests/snapshot/snapshot_support.hpp"
#include "tests/support/catch.hpp"

namespace {

namespace ms = meshstage;
using ms::test::contains;
using ms::test::run;

/// Two files and their index in a folder, and all of it in one file.
struct Sharded {
  TempDirectory folder;
  std::string index = (folder.path() / "model.safetensors.index.json").string();
  std::string second = (folder.path() / "model-2.safetensors").string();
  std::string one = (folder.path() / "one.safetensors").string();

  Sharded() {
    const auto a = ms::Tensor::arange<float>(6).view({2, 3});
    const auto b = ms::Tensor::full<std::uint8_t>({5}, std::uint8_t{3});
    auto& fs = ms::real_file_system();
    ms::save_safetensors(fs, folder.path() / "model-1.safetensors", {{"wte", a}},
                         {{"format", "pt"}});
    ms::save_safetensors(fs, second, {{"head", b}}, {{"format", "np"}, {"part", "2"}});
    ms::save_safetensors(fs, one, {{"head", b}, {"wte", a}}, {{"format", "pt"}, {"part", "2"}});
    write_index(R"({"wte":"model-1.safetensors","head":"model-2.safetensors"})");
  }
  void write_index(const std::string& map) const {
    std::ofstream(index) << R"({"metadata":{"total_size":29},"weight_map":)" << map << "}";
  }
};

}  // namespace

TEST_CASE("an index of several files is inspected and verified as one state") {
  const Sharded model;
  const auto inspected = run({"inspect", model.index});
  CHECK(inspected.code == 0);
  CHECK(contains(inspected.out, "index of 2 safetensors files, no image of ours"));
  CHECK(contains(inspected.out, "2 tensors in 2 storages of 29 B"));
  CHECK(contains(inspected.out, "metadata format = pt"));  // the first file's
  CHECK(contains(inspected.out, "metadata part = 2"));
  const auto json = run({"inspect", model.index, "--json"}).json();
  CHECK(json.at("tensors") == 2);
  CHECK(json.at("file_bytes") ==
        std::filesystem::file_size(model.folder.path() / "model-1.safetensors") +
            std::filesystem::file_size(model.second));
  const auto verified = run({"verify", model.index});
  CHECK(verified.code == 1);  // nothing in it can be verified
  CHECK(contains(verified.out, "sound safetensors files of another program"));
}

TEST_CASE("export writes one file of an index's files, equal to the same state in one file") {
  const Sharded model;
  const auto same = run({"diff", model.index, model.one});
  CHECK(same.code == 0);
  CHECK(contains(same.out, "identical, every bit"));
  const std::string out = (model.folder.path() / "out.safetensors").string();
  REQUIRE(run({"export", model.index, "-o", out}).code == 0);
  CHECK(run({"diff", out, model.one}).code == 0);
  CHECK(contains(run({"inspect", out}).out, "metadata part = 2"));
  ms::save_safetensors(ms::real_file_system(), model.second,
                       {{"head", ms::Tensor::full<std::uint8_t>({5}, std::uint8_t{4})}});
  const auto other = run({"diff", model.index, model.one});
  CHECK(other.code == 1);
  CHECK(contains(other.out, "head"));
}

TEST_CASE("an index that is wrong is named, with what is wrong") {
  const Sharded model;
  std::filesystem::remove(model.second);
  const auto missing = run({"inspect", model.index});
  CHECK(missing.code == 2);
  CHECK(contains(missing.err, "model-2.safetensors"));
  model.write_index(R"({"wte":"../elsewhere.safetensors"})");
  CHECK(contains(run({"inspect", model.index}).err, "no name of a file beside the index"));
  model.write_index(R"({"wte":"model-1.safetensors","head":"model-1.safetensors"})");
  const auto lying = run({"verify", model.index});
  CHECK(lying.code == 1);
  CHECK(contains(lying.out, "\"head\" is not in"));
  model.write_index("{}");
  CHECK(contains(run({"inspect", model.index}).out, "0 tensors in 0 storages"));
}
