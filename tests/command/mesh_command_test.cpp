#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/replicated.hpp>

#include "tests/command/run_mesh.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

using nlohmann::json;

namespace {

json cases(const std::string& file) {
  std::ifstream in(std::string(MESHSTAGE_TEST_DATA) + "/mesh/" + file);
  return json::parse(in).at("cases");
}

std::string joined(const json& list) {
  std::string out;
  for (const json& x : list) {
    out += (out.empty() ? "" : ",") + (x.is_string() ? x.get<std::string>() : x.dump());
  }
  return out;
}

json parsed(const Answer& answer) {
  INFO(answer.err);
  REQUIRE(answer.code == 0);
  REQUIRE(answer.err.empty());
  return json::parse(answer.out);
}

}  // namespace

TEST_CASE("mesh show prints PyTorch's table of coordinates, slices and groups") {
  for (const json& c : cases("mesh.json")) {
    const json got = parsed(
        run_mesh({"show", "--mesh", joined(c["shape"]), "--names", joined(c["names"]), "--ranks",
                  joined(c["ranks"]), "--slice", joined(c["slice_names"]), "--json"}));
    CHECK(got == c);
  }
}

TEST_CASE("mesh show answers for some ranks, and for people") {
  const json some =
      parsed(run_mesh({"show", "--mesh", "2,4", "--names", "dp,tp", "--rank", "5,1-2", "--json"}));
  REQUIRE(some["per_rank"].size() == 3);
  CHECK(some["per_rank"][0] == json({{"rank", 5},
                                     {"coordinate", {1, 1}},
                                     {"slice", json::array()},
                                     {"groups", {{"dp", {1, 5}}, {"tp", {4, 5, 6, 7}}}}}));
  // A group of a million ranks, once.
  const json one = parsed(run_mesh({"show", "--mesh", "1000000", "--rank", "5", "--json"}));
  CHECK(one["per_rank"][0]["groups"]["dim0"].size() == 1000000);
  const Answer table = run_mesh({"show", "--mesh", "512,256", "--names", "dp,tp"});
  CHECK(table.code == 0);
  CHECK_THAT(table.out, contains_text("131072 ranks") && contains_text("131008 more ranks"));
}

namespace {

// What a range of `show --compact` stands for; a list as it is.
json expanded(const json& ranks, std::size_t level = 0) {
  if (ranks.is_array()) return ranks;
  const auto at = [&](const char* key) {
    const json& value = ranks.at(key);
    return value.is_array() ? value.at(level).get<int>() : value.get<int>();
  };
  const std::size_t levels = ranks.at("size").is_array() ? ranks.at("size").size() : 1;
  json out = json::array();
  for (int i = 0; i < at("size"); ++i) {
    json next = ranks;
    next["first"] = ranks.at("first").get<int>() + i * at("stride");
    out.push_back(level + 1 == levels ? next["first"] : expanded(next, level + 1));
  }
  return out;
}

}  // namespace

TEST_CASE("mesh show says the same compactly: ranks at equal distances as a range") {
  int ranges = 0;
  int lists = 0;
  const auto count = [&](const json& ranks) {
    if (ranks.empty()) return;
    ++(ranks.is_object() ? ranges : lists);
  };
  std::vector<json> all = cases("mesh.json");
  // No strides describe these, and yet some of their groups are ranges.
  all.push_back({{"shape", {2, 3}},
                 {"names", {"dp", "tp"}},
                 {"ranks", {6, 4, 2, 0, 9, 1}},
                 {"slice_names", {"tp", "dp"}}});
  for (const json& c : all) {
    std::vector<std::string> words{"show",
                                   "--mesh",
                                   joined(c["shape"]),
                                   "--names",
                                   joined(c["names"]),
                                   "--ranks",
                                   joined(c["ranks"]),
                                   "--slice",
                                   joined(c["slice_names"]),
                                   "--json"};
    const json whole = parsed(run_mesh(words));
    words.emplace_back("--compact");
    json got = parsed(run_mesh(words));
    CHECK(got["compact"] == true);
    got.erase("compact");
    count(got["ranks"]);
    got["ranks"] = expanded(got["ranks"]);
    for (json& rank : got["per_rank"]) {
      count(rank["slice"]);
      rank["slice"] = expanded(rank["slice"]);
      for (auto& [name, group] : rank["groups"].items()) {
        count(group);
        group = expanded(group);
      }
    }
    CHECK(got == whole);
  }
  CHECK(ranges > 100);
  CHECK(lists > 5);
  const json some = parsed(run_mesh({"show", "--mesh", "2,4", "--names", "dp,tp", "--rank", "5",
                                     "--slice", "dp,tp", "--json", "--compact"}));
  CHECK(some["ranks"] == json({{"first", 0}, {"stride", 1}, {"size", 8}}));
  CHECK(some["per_rank"][0]["groups"]["dp"] == json({{"first", 1}, {"stride", 4}, {"size", 2}}));
  CHECK(some["per_rank"][0]["slice"] == json({{"first", 0}, {"stride", {4, 1}}, {"size", {2, 4}}}));
}

TEST_CASE("mesh shard prints PyTorch's local shapes and offsets") {
  for (const json& c : cases("layout.json")) {
    const json got =
        parsed(run_mesh({"shard", "--mesh", joined(c["mesh"]), "--tensor", joined(c["tensor"]),
                         "--placements", joined(c["placements"]), "--json"}));
    CHECK(got == c);
  }
}

TEST_CASE("mesh show and shard take a mesh file, and shard the name of one of its tensors") {
  const std::string file = std::string(MESHSTAGE_SOURCE_DIR) + "/tools/mesh/example.toml";
  CHECK(run_mesh({"show", file}).out ==
        run_mesh({"show", "--mesh", "2,4", "--names", "dp,tp"}).out);
  const auto shard = [](std::vector<std::string> mesh, const std::vector<std::string>& tensor) {
    mesh.insert(mesh.begin(), "shard");
    mesh.insert(mesh.end(), tensor.begin(), tensor.end());
    return run_mesh(mesh);
  };
  const std::vector<std::string> words{"--mesh", "2,4", "--names", "dp,tp"};
  const auto by_words = shard(words, {"--tensor", "1024,512", "--placements", "S(0),S(1)"});
  CHECK(by_words.code == 0);
  CHECK(shard({file}, {"--tensor", "weight"}).out == by_words.out);
  CHECK(shard({file}, {"--tensor", "1024,512", "--placements", "S(0),S(1)"}).out == by_words.out);
  CHECK(shard({file}, {"--tensor", "bias", "--placements", "S(0),R"}).out ==
        shard(words, {"--tensor", "512", "--placements", "S(0),R"}).out);
  const auto none = shard({file}, {"--tensor", "weights"});
  CHECK(none.code == 2);
  CHECK_THAT(none.err, contains_text("has no tensor 'weights'"));
}

TEST_CASE("a tensor of a mesh file lies on one pipeline stage, in every command") {
  const TempDirectory directory;
  const std::string file = directory.path() / "mesh.toml";
  std::ofstream(file) << "mesh = {shape = [2, 2], names = [\"pp\", \"dp\"]}\n"
                         "[[tensor]]\nname = \"head\"\nshape = [5, 4]\nplacements = \"S(0)\"\n"
                         "only = {pp = 1}\n";
  const Answer text = run_mesh({"shard", file, "--tensor", "head"});
  INFO(text.err);
  CHECK(text.out ==
        "tensor 5,4 as S(0) on mesh pp=2, dp=2, at pp=1\n"
        "  pp: only the ranks at 1 have it\n"
        "  dp: cuts tensor dimension 0 in 2\n"
        "  a rank has 8 to 12 of 20 elements\n"
        "\n"
        "        0:4\n"
        "      ┌─────┐\n"
        "  0:3 │  2  │\n"
        "      ├─────┤\n"
        "  3:5 │  3  │\n"
        "      └─────┘\n"
        "  numbers in the cells are ranks\n");
  const json ranks = json::parse(
      R"([{"coordinate": [1,0], "shape": [3,4], "offset": [0,0]},
          {"coordinate": [1,1], "shape": [2,4], "offset": [3,0]}])");
  const json shard = parsed(run_mesh({"shard", file, "--tensor", "head", "--json"}));
  CHECK(shard["only"] == json{{"pp", 1}});
  CHECK(shard["placements"] == json{"S(0)"});
  CHECK(shard["ranks"] == ranks);
  const json partners = parsed(run_mesh({"partners", file, "--json"}));
  CHECK(partners["ranks"][1]["own_bytes"] == 0);
  CHECK(partners["ranks"][2]["own_bytes"] == 48);
  CHECK(partners["total_bytes"] == 80);
  const Answer picture = run_mesh({"draw", file});
  CHECK(picture.code == 0);
  CHECK_THAT(picture.out,
             contains_text("as S(0), at pp=1") && contains_text("the tensor is at 1 alone"));
}

TEST_CASE("mesh reshard says who sends which box to whom") {
  const std::vector<std::string> words{"reshard",  "--from", "2,2",          "--to",  "3",
                                       "--tensor", "6,4",    "--placements", "S(0),R"};
  const Answer text = run_mesh(words);
  CHECK(text.code == 0);
  for (const char* part : {"tensor 6,4: S(0),R on mesh 2,2 to S(0) on mesh 3", "0:2, 0:4",
                           "2:3, 0:4", "3:4, 0:4", "4 elements are sent, 20 stay"}) {
    INFO(text.out);
    CHECK_THAT(text.out, contains_text(part));
  }
  auto with_json = words;
  with_json.push_back("--json");
  const json answer = parsed(run_mesh(with_json));
  CHECK(answer.at("boxes").size() == 4);
  CHECK(answer.at("boxes").at(0) ==
        json{{"from", 0}, {"to", 0}, {"offset", {0, 0}}, {"shape", {2, 4}}});
  CHECK(answer.at("moved_elements").get<int>() + answer.at("kept_elements").get<int>() == 24);
  CHECK(answer.at("to").at("placements") == "S(0)");
  auto wrong = words;
  wrong.back() = "P(sum),R";
  CHECK(run_mesh(wrong).code == 2);
  CHECK_THAT(run_mesh(wrong).err, contains_text("redistribute it to R or S(DIM) first"));
}

TEST_CASE("mesh shard draws which rank holds what") {
  const Answer two = run_mesh({"shard", "--mesh", "2,2", "--names", "dp,tp", "--tensor", "13,7",
                               "--placements", "S(0),S(1)"});
  CHECK(two.out ==
        "tensor 13,7 as S(0),S(1) on mesh dp=2, tp=2\n"
        "  dp: cuts tensor dimension 0 in 2\n"
        "  tp: cuts tensor dimension 1 in 2\n"
        "  a rank has 18 to 28 of 91 elements\n"
        "\n"
        "         0:4   4:7\n"
        "       ┌─────┬─────┐\n"
        "   0:7 │  0  │  1  │\n"
        "       ├─────┼─────┤\n"
        "  7:13 │  2  │  3  │\n"
        "       └─────┴─────┘\n"
        "  numbers in the cells are ranks\n");
  const Answer three =
      run_mesh({"shard", "--mesh", "2,2", "--tensor", "4,5,6", "--placements", "S(0),S(2)"});
  CHECK_THAT(three.out, contains_text("[0:2,:,:]") && contains_text("[2:4,:,:]"));
  const Answer empty = run_mesh({"shard", "--mesh", "4", "--tensor", "2", "--placements", "S(0)"});
  CHECK_THAT(empty.out, contains_text("ranks without elements: 2,3"));
  const Answer scalar = run_mesh({"shard", "--mesh", "4", "--tensor", "", "--placements", "R"});
  CHECK(scalar.code == 0);
  CHECK_THAT(scalar.out, contains_text("0-3"));
  const Answer none = run_mesh({"shard", "--mesh", "2", "--tensor", "0,3", "--placements", "S(0)"});
  CHECK_THAT(none.out, contains_text("0 of 0 elements") && contains_text("without elements: 0,1"));
}

TEST_CASE("mesh partners counts the bytes each rank and host sends and holds") {
  const json got = parsed(run_mesh({"partners", "--mesh", "2,2", "--host-sizes", "3,1", "--policy",
                                    "across-hosts", "--tensor", "w=f32[100]:S(0),R", "--tensor",
                                    "b=u8[10]:R,R", "--bandwidth", "0.000001", "--json"}));
  // A rank has 50 floats of w and all of b: 210 bytes. Rank 3 keeps the copies of 0, 1 and 2.
  CHECK(got["ranks"][0] == json({{"rank", 0},
                                 {"host", "host0"},
                                 {"holders", {3}},
                                 {"wards", {3}},
                                 {"lenders", json::array()},
                                 {"own_bytes", 210},
                                 {"sent_bytes", 210},
                                 {"held_bytes", 210}}));
  CHECK(got["ranks"][3]["wards"] == json({0, 1, 2}));
  CHECK(got["ranks"][3]["held_bytes"] == 630);
  CHECK(got["hosts"][0]["link_out_bytes"] == 630);
  CHECK(got["hosts"][0]["link_in_bytes"] == 210);
  CHECK(got["total_bytes"] == 840);
  CHECK(got["busiest_link_bytes"] == 630);
  CHECK(got["seconds"] == 0.63);
}

TEST_CASE("in mesh partners copies borrow what another host has too, and says how much") {
  const std::vector<std::string> words{
      "partners", "--mesh",           "2,4",      "--ranks-per-host", "4",
      "--tensor", "w=f32[64]:R,S(0)", "--tensor", "x=f32[64]:S(0),R", "--json"};
  const json all = parsed(run_mesh(words));
  CHECK(all["total_bytes"] == 8 * (64 + 128));
  CHECK(all["borrowed_bytes"] == 0);
  CHECK(all["ranks"][5]["lenders"] == json::array());
  auto borrow = words;
  borrow.emplace_back("--borrow-replicated");
  // Rank r + 4, on the other host, has r's part of w; all that have the same of x are on one host.
  const json less = parsed(run_mesh(borrow));
  CHECK(less["total_bytes"] == 8 * 128);
  CHECK(less["borrowed_bytes"] == 8 * 64);
  CHECK(less["borrowed_memory_bytes"] == 2 * 8 * 64);
  CHECK(less["busiest_link_bytes"] == 4 * 128);
  CHECK(less["ranks"][5]["own_bytes"] == 64 + 128);
  CHECK(less["ranks"][5]["sent_bytes"] == 128);
  CHECK(less["ranks"][5]["held_bytes"] == 128);
  CHECK(less["ranks"][5]["lenders"] == json({1}));
  CHECK(less["hosts"][1]["held_bytes"] == 4 * 128);
  // Whoever holds the copies: two of them lack it twice.
  for (const char* option : {"--policy", "ring", "--copies", "2"}) borrow.emplace_back(option);
  const json ring = parsed(run_mesh(borrow));
  CHECK(ring["borrowed_bytes"] == 2 * 8 * 64);
  CHECK(ring["total_bytes"] == 2 * 8 * 128);
  CHECK(ring["ranks"][5]["lenders"] == json({1}));
  borrow.erase(std::find(borrow.begin(), borrow.end(), "--json"));
  CHECK_THAT(run_mesh(borrow).out,
             contains_text("holds copies of  borrows from  own") &&
                 contains_text("has it too: 1 KiB of each step's sending, 2 KiB of host memory"));
}

TEST_CASE("mesh partners counts what going through every rank, tensor and holder counts") {
  std::mt19937 random(17);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  std::int64_t borrowed_in_all = 0;
  for (int round = 0; round < 60; ++round) {
    const std::vector<std::int64_t> shape{1 + below(3), 1 + below(4)};
    const auto mesh = meshstage::DeviceMesh::from_shape(shape);
    const int world = static_cast<int>(mesh.size());
    const int per_host = 1 + below(4);
    std::vector<meshstage::TensorSpec> tensors;
    std::vector<std::string> words{"partners",
                                   "--mesh",
                                   std::to_string(shape[0]) + "," + std::to_string(shape[1]),
                                   "--ranks-per-host",
                                   std::to_string(per_host),
                                   "--policy",
                                   below(2) == 0 ? "ring" : "half-shift",
                                   "--copies",
                                   std::to_string(below(std::min(world, 3))),
                                   "--json"};
    for (int t = 0; t < 6; ++t) {  // some of them alike
      const char* placements[] = {"R,R", "R,S(0)", "S(0),R", "S(0),S(1)", "S(1),S(1)", "P,S(0)"};
      std::string text = "t" + std::to_string(t) + (below(2) == 0 ? "=f32[" : "=u8[") +
                         std::to_string(below(3) == 0 ? 12 : below(7)) + "," +
                         std::to_string(below(3) == 0 ? 24 : below(7)) + "]:";
      if (below(3) == 0) {  // on a part of the mesh
        text += below(2) == 0 ? "R@dim0=" : "S(1)@dim0=";
        text += std::to_string(below(static_cast<int>(shape[0])));
      } else {
        text += placements[below(6)];
      }
      tensors.push_back(meshstage::parse_tensor_spec(text));
      words.emplace_back("--tensor");
      words.push_back(text);
    }
    const bool borrow = below(2) == 0;
    if (borrow) words.emplace_back("--borrow-replicated");
    const json got = parsed(run_mesh(words));
    INFO(joined(json(words)));
    const auto world_size = static_cast<std::size_t>(world);
    const auto host = [&](int r) { return static_cast<std::size_t>(r / per_host); };
    std::vector<std::int64_t> own(world_size);
    std::vector<std::int64_t> sent(world_size);
    std::vector<std::int64_t> held(world_size);
    std::vector<std::int64_t> link_out(world_size);  // by host
    std::vector<std::int64_t> link_in(world_size);
    std::int64_t total = 0;
    std::int64_t borrowed = 0;
    std::vector<std::set<int>> lenders(world_size);
    const auto domains = meshstage::FailureDomains::uniform(world, per_host);
    for (int r = 0; r < world; ++r) {
      const auto rank = static_cast<std::size_t>(r);
      for (const auto& t : tensors) {
        const auto [part, placements] = meshstage::place_of(mesh, t);
        if (!part.contains(r)) continue;
        const auto bytes =
            meshstage::local_shard(part, r, t.shape, placements).numel() * t.element_bytes;
        own[rank] += bytes;
        const auto lender = meshstage::lender_of(part, placements, domains, r);
        if (borrow && lender && bytes > 0) lenders[rank].insert(*lender);
        for (const int h : got["ranks"][rank]["holders"]) {
          if (borrow && lender) {
            borrowed += bytes;
            continue;
          }
          held[static_cast<std::size_t>(h)] += bytes;
          sent[rank] += bytes;
          total += bytes;
          if (host(r) == host(h)) continue;
          link_out[host(r)] += bytes;
          link_in[host(h)] += bytes;
        }
      }
    }
    for (std::size_t r = 0; r < world_size; ++r) {
      CHECK(got["ranks"][r]["own_bytes"] == own[r]);
      CHECK(got["ranks"][r]["sent_bytes"] == sent[r]);
      CHECK(got["ranks"][r]["held_bytes"] == held[r]);
      CHECK(got["ranks"][r]["lenders"] == json(lenders[r]));
    }
    for (std::size_t h = 0; h < got["hosts"].size(); ++h) {
      CHECK(got["hosts"][h]["link_out_bytes"] == link_out[h]);
      CHECK(got["hosts"][h]["link_in_bytes"] == link_in[h]);
    }
    CHECK(got["total_bytes"] == total);
    CHECK(got["borrowed_bytes"] == borrowed);
    borrowed_in_all += borrowed;
  }
  CHECK(borrowed_in_all > 10000);
}

TEST_CASE("a copy on the same host costs no link, and is said to protect from no host") {
  const Answer got =
      run_mesh({"partners", "--mesh", "4", "--ranks-per-host", "4", "--tensor", "w=f32[64]:S(0)"});
  CHECK(got.code == 0);
  CHECK_THAT(got.out, contains_text("4 of 4 ranks have no copy on another host") &&
                          contains_text("carries 0 B"));
}

TEST_CASE("mesh survive says what is always survived, and asks for enough by its exit code") {
  const json got = parsed(run_mesh({"survive", "--mesh", "8", "--ranks-per-host", "2", "--json"}));
  CHECK(got["always_survived"] == 1);
  CHECK(got["ranks"]["first_lost"] == json({"host0", "host2"}));
  CHECK(got["ranks"]["counts"][1] ==
        json({{"lost", 2}, {"sets", 6}, {"survived", 4}, {"how", "proven"}}));
  const Answer enough =
      run_mesh({"survive", "--mesh", "8", "--ranks-per-host", "2", "--require", "1"});
  CHECK(enough.code == 0);
  CHECK_THAT(enough.out, contains_text("every loss of 1 host is survived; not every loss of 2"));
  const Answer more =
      run_mesh({"survive", "--mesh", "8", "--ranks-per-host", "2", "--require", "2"});
  CHECK(more.code == 1);
  CHECK(more.err.empty());
  CHECK_THAT(more.out, contains_text("NOT ENOUGH"));
  // Where it is not known, JSON says null and people see that.
  const json big = parsed(run_mesh({"survive", "--mesh", "100000", "--json"}));
  CHECK(big["ranks"]["counts"][2]["survived"].is_null());
  CHECK(big["ranks"]["counts"][2]["how"] == "not enumerated");
}

TEST_CASE("mesh survive counts on no copy for what copies borrow, by option and by file") {
  // Three hosts elsewhere hold copies; the next host but one has each rank's part of w.
  const std::vector<std::string> words{
      "survive",  "--mesh", "2,4",      "--ranks-per-host", "2",     "--policy", "across-hosts",
      "--copies", "3",      "--tensor", "w=f32[64]:R,S(0)", "--json"};
  const json whole = parsed(run_mesh(words));
  CHECK(whole["always_survived"] == 3);
  CHECK(whole["borrow_replicated"] == false);
  auto borrow = words;
  borrow.emplace_back("--borrow-replicated");
  const json borrowed = parsed(run_mesh(borrow));
  CHECK(borrowed["always_survived"] == 1);
  CHECK(borrowed["borrow_replicated"] == true);
  CHECK(borrowed["ranks"]["first_lost"] == json({"host0", "host2"}));
  CHECK(borrowed["tensors"][0]["always_survived"] == 1);
  borrow.erase(std::find(borrow.begin(), borrow.end(), "--json"));
  for (const char* option : {"--require", "2"}) borrow.emplace_back(option);
  const Answer refused = run_mesh(borrow);
  CHECK(refused.code == 1);
  CHECK_THAT(refused.out, contains_text("each rank's image") && contains_text("NOT ENOUGH: 2"));
  const TempDirectory directory;
  const std::string file = directory.path() / "mesh.toml";
  std::ofstream(file) << "[mesh]\nshape = [2, 4]\n[hosts]\nranks_per_host = 2\n[partners]\n"
                         "policy = \"across-hosts\"\ncopies = 3\nborrow_replicated = true\n"
                         "[[tensor]]\nname = \"w\"\nshape = [64]\nplacements = \"R,S(0)\"\n";
  CHECK(parsed(run_mesh({"survive", file, "--json"})) == borrowed);
  CHECK(run_mesh({"check", file}).code == 0);
  CHECK(run_mesh({"draw", file}).code == 0);
}

TEST_CASE("mesh check passes a good file and lists what is wrong in a bad one") {
  const TempDirectory directory;
  const std::string good = directory.path() / "good.toml";
  const std::string bad = directory.path() / "bad.toml";
  std::ofstream(good) << kMeshFile;
  std::ofstream(bad) << "[mesh]\nshape = [2, 0]\n[partners]\npolicy = \"x\"\n";
  const Answer ok = run_mesh({"check", good});
  CHECK(ok.code == 0);
  CHECK_THAT(ok.out,
             contains_text("ok: mesh dp=2, tp=4, 2 hosts, across-hosts, 1 copy, 2 tensors"));
  const Answer wrong = run_mesh({"check", bad});
  CHECK(wrong.code == 1);
  CHECK(wrong.err.empty());
  CHECK_THAT(wrong.out, contains_text(bad + ":2:13: mesh.shape[1]: 0 is out of range; use 1 to") &&
                            contains_text(bad + ":4:10: partners.policy:"));
  const Answer ci = run_mesh({"check", bad, "--json"});
  CHECK(ci.code == 1);
  const json got = json::parse(ci.out);
  CHECK(got["ok"] == false);
  REQUIRE(got["errors"].size() == 2);
  CHECK(got["errors"][1]["line"] == 4);
  CHECK(got["errors"][1]["key"] == "partners.policy");
  // The other commands refuse the file in one line.
  const Answer refused = run_mesh({"survive", bad});
  CHECK(refused.code == 2);
  CHECK_THAT(refused.err, contains_text("and 1 more: meshstage mesh check"));
}
