// Pictures of meshes: `mesh draw`.
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/command/run_mesh.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"
#include "tools/mesh/svg.hpp"

namespace {

// The texts of a picture that leave its page, or were cut.
std::vector<std::string> cut_texts(const std::string& svg) {
  const auto number = [&](std::size_t from, const std::string& key) {
    const auto at = svg.find(key + "=\"", from) + key.size() + 2;
    return std::stod(svg.substr(at));
  };
  const double page = number(svg.find("<svg"), " width");
  std::vector<std::string> cut;
  for (auto at = svg.find("<text x="); at != std::string::npos; at = svg.find("<text x=", at + 1)) {
    const auto from = svg.find('>', at) + 1;
    const std::string words = svg.substr(from, svg.find("</text>", from) - from);
    const std::string tag = svg.substr(at, from - at);
    const double width = meshstage::tools::text_width(words, number(at, " font-size"));
    const double left = number(at, " x") - (tag.find("middle") != std::string::npos    ? width / 2
                                            : tag.find("\"end\"") != std::string::npos ? width
                                                                                       : 0);
    const bool whole = words.find("\u2026") == std::string::npos || words.starts_with("\u2026 and");
    if (left < 0 || left + width > page || !whole) cut.push_back(words);
  }
  return cut;
}

}  // namespace

TEST_CASE("no text of a picture is cut, and none leaves the page") {
  const TempDirectory directory;
  const std::string file = directory.path() / "mesh.toml";
  std::string hosts;
  for (int h = 0; h < 4; ++h) {
    hosts += "[[host]]\nname = \"gpu-node-00" + std::to_string(h) +
             ".cluster.example.org\"\nranks = \"" + std::to_string(4 * h) + "-" +
             std::to_string(4 * h + 3) + "\"\n";
  }
  const std::string tensor =
      "[[tensor]]\nname = \"model.layers.23.self_attention.query_key_value.weight\"\n"
      "shape = [16384, 5120]\ndtype = \"bf16\"\n";
  const std::string stages =
      "[mesh]\nshape = [2, 2, 4]\nnames = [\"pipeline_stage\", "
      "\"data_parallel\", \"tensor_parallel\"]\n";
  for (const std::string& text :
       {stages + hosts + tensor + "placements = \"S(0),S(1)\"\nonly = {pipeline_stage = 1}\n",
        stages + "[hosts]\nranks_per_host = 1\n" + tensor + "placements = \"R,S(0),S(1)\"\n",
        "[mesh]\nshape = [512]\n[hosts]\nranks_per_host = 8\nhosts_per_rack = 4\n[partners]\n"
        "policy = \"across-racks\"\ncopies = 3\n" +
            tensor + "placements = \"S(0)\"\n",
        std::string("mesh = {shape = [16, 32]}\n")}) {
    std::ofstream(file) << text;
    const Answer picture = run_mesh({"draw", file});
    REQUIRE(picture.code == 0);
    CHECK(cut_texts(picture.out) == std::vector<std::string>());
  }
}

TEST_CASE("mesh draw writes a picture with every rank, for files of any size") {
  const TempDirectory directory;
  const std::string file = directory.path() / "mesh.toml";
  const std::string svg = directory.path() / "mesh.svg";
  std::ofstream(file) << kMeshFile;
  CHECK(run_mesh({"draw", file, "-o", svg}).code == 0);
  std::ifstream in(svg);
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  CHECK_THAT(text, contains_text("<svg xmlns=") && contains_text("</svg>") &&
                       contains_text(">host1</text>") && contains_text(">1,3</text>"));
  for (int r = 0; r < 8; ++r) {
    CHECK_THAT(text, contains_text(">" + std::to_string(r) + "</text>"));
  }
  const Answer slices = run_mesh({"draw", file, "--tensor", "x"});
  CHECK_THAT(slices.out, contains_text("[0:2,:,:]"));
  CHECK(run_mesh({"draw", file, "--tensor", "y"}).code == 2);
  CHECK(run_mesh({"draw", file, "-o", directory.path() / "none" / "x.svg"}).code == 2);
  // Every block of a tensor that 512 ranks share, and whole names of hosts, whichever way it is
  // cut.
  for (const std::string tensor : {"[5120]", "[5120, 4]", "[4, 5120]", "[512, 3, 2]"}) {
    const std::string cut = tensor == "[4, 5120]" ? "S(1)" : "S(0)";
    std::ofstream(file) << "mesh = {shape = [512]}\ntensor = [{name = \"t\", shape = " << tensor
                        << ", placements = \"" << cut << "\"}]\n";
    const Answer all = run_mesh({"draw", file});
    CHECK(all.code == 0);
    CHECK_THAT(all.out, contains_text(">host511</text>") && !contains_text("not drawn"));
    for (int r = 0; r < 512; ++r) {
      const std::string number = ">" + std::to_string(r) + "</text>";
      std::size_t times = 0;  // its cell's number and coordinate, and its block
      for (auto at = all.out.find(number); at != std::string::npos; ++times) {
        at = all.out.find(number, at + 1);
      }
      if (times < 3) FAIL(tensor << ": rank " << r << " is there " << times << " times");
    }
  }
  // A tensor with more blocks than a picture has room for is drawn in part.
  std::ofstream(file) << "mesh = {shape = [64, 64]}\ntensor = [{name = \"t\", shape = [640, 640], "
                         "placements = \"S(0),S(1)\"}]\n";
  const Answer part = run_mesh({"draw", file});
  CHECK(part.code == 0);
  CHECK_THAT(part.out, contains_text("and 3072 more blocks, not drawn"));
  std::ofstream(file) << "mesh = {shape = [131072]}\nhosts = {ranks_per_host = 8}\n";
  const Answer large = run_mesh({"draw", file});
  CHECK(large.code == 0);
  CHECK_THAT(large.out, contains_text("and 130560 more ranks on 16320 more hosts, not drawn"));
}
