#include <meshstage/mesh/mesh_file.hpp>

#include <meshstage/core/error/error.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;

namespace {

constexpr const char* kGood = R"toml(
[mesh]
shape = [2, 4]
names = ["dp", "tp"]

[[host]]
name = "a"
rack = "north"
ranks = "0-3"
[[host]]
name = "b"
rack = "south"
ranks = [4, 5, 6, 7]

[partners]
policy = "across-racks"
copies = 1
borrow_replicated = true

[[tensor]]
name = "w"
shape = [1024, 512]
dtype = "bf16"
placements = "S(0),R"
[[tensor]]
name = "b"
shape = [512]
placements = ["R", "S(-1)"]
)toml";

struct Wrong {
  const char* text;
  int line;
  const char* key;
  const char* part;  // of message and fix
};

}  // namespace

TEST_CASE("a mesh file gives mesh, hosts, holders and tensors") {
  const auto result = parse_mesh_file(kGood);
  for (const auto& e : result.errors) UNSCOPED_INFO(to_string(e));
  REQUIRE(result.description.has_value());
  const MeshDescription& d = *result.description;
  CHECK(d.mesh == DeviceMesh::from_shape({2, 4}, {"dp", "tp"}));
  CHECK(d.domains.host(1) == Host{"b", "south", {4, 5, 6, 7}});
  CHECK(d.holders[1] == std::vector<int>{5});
  CHECK(d.borrow_replicated);
  REQUIRE(d.tensors.size() == 2);
  CHECK(d.tensors[0].element_bytes == 2);
  CHECK(to_string(d.tensors[1].placements) == "R,S(-1)");
}

TEST_CASE("a tensor of a mesh file can lie on one pipeline stage") {
  const std::string head =
      "mesh = {shape = [2, 3], names = [\"pp\", \"dp\"]}\n[[tensor]]\n"
      "name = \"head\"\nshape = [9]\nplacements = \"S(0)\"\n";
  const auto good = parse_mesh_file(head + "only = {pp = 1}\n");
  for (const auto& e : good.errors) UNSCOPED_INFO(to_string(e));
  REQUIRE(good.description.has_value());
  const TensorSpec& tensor = good.description->tensors.at(0);
  CHECK(tensor.only == std::vector<MeshCoordinate>{{"pp", 1}});
  const TensorPlace place = place_of(good.description->mesh, tensor);
  CHECK(place.mesh.ranks() == std::vector<int>{3, 4, 5});
  CHECK(place.mesh.shape() == std::vector<std::int64_t>{1, 3});
  CHECK(to_string(place.placements) == "R,S(0)");
  const auto wrong = [&](const std::string& only) {
    const auto result = parse_mesh_file(head + only + "\n");
    REQUIRE(result.errors.size() == 1);
    return to_string(result.errors[0]);
  };
  CHECK(wrong("only = {pp = 2}") ==
        "6:14: tensor[0].only.pp: coordinate 2 of dimension 'pp'; use 0 to 1");
  CHECK_THAT(wrong("only = {tp = 0}"), contains_text("tensor[0].only.tp"));
  CHECK_THAT(wrong("only = 1"), contains_text("write only = {pp = 1}"));
  CHECK_THAT(wrong("only = {}"), contains_text("tensor[0].placements"));
  CHECK_THAT(wrong("only = {pp = 0, dp = 0}"),
             contains_text("1 placement for 0 dimensions beside dp=0,pp=0"));
}

TEST_CASE("names in other scripts and comments may stand in a mesh file") {
  const auto result = parse_mesh_file(
      "\xef\xbb\xbf# \u00fcber\n[mesh]\nshape = [1]\n[[host]]\nname = \"k\\\"\u00f6ln\"\n"
      "rack = \"\"\"\\\n  \u96ea\"\"\"\nranks = [0]\n");
  for (const auto& e : result.errors) UNSCOPED_INFO(to_string(e));
  REQUIRE(result.description.has_value());
  CHECK(result.description->domains.host(0) == Host{"k\"\u00f6ln", "\u96ea", {0}});
}

TEST_CASE("hosts can be a rule, holders a list, and both be left out") {
  const auto ruled = parse_mesh_file(
      "[mesh]\nshape = [6]\n[hosts]\nranks_per_host = 2\nhosts_per_rack = 2\n"
      "[partners]\nholders = [[1], [2], [3], [4], [5], [0, 1]]\n");
  REQUIRE(ruled.description.has_value());
  CHECK(ruled.description->domains == FailureDomains::uniform(6, 2, 2));
  CHECK(ruled.description->explicit_holders);
  CHECK(ruled.description->holders[5] == std::vector<int>{0, 1});
  const auto bare = parse_mesh_file("mesh = {shape = [3]}");
  REQUIRE(bare.description.has_value());
  CHECK(bare.description->domains.hosts() == 3);
  CHECK(bare.description->holders == Holders{{1}, {2}, {0}});
  const auto alone = parse_mesh_file("mesh.shape = [1]");
  REQUIRE(alone.description.has_value());
  CHECK(alone.description->holders == Holders{{}});
}

TEST_CASE("what is wrong in a mesh file is named with its line, its key and the fix") {
  const std::string mesh = "[mesh]\nshape = [2, 4]\nnames = [\"dp\", \"tp\"]\n";
  const Wrong table[] = {
      {"", 0, "mesh", "add [mesh]"},
      {"mesh = 3", 1, "mesh", "is not a table"},
      {"garbage", 1, "", "not TOML"},
      {"[mesh\n", 1, "", "not TOML"},
      {"\xff\xfe\x01", 1, "", "not TOML"},
      // Found by the fuzz target: toml++ assumes that these cannot happen.
      {"[[[1]]]", 1, "", "not TOML"},
      {"a = {[", 1, "", "not TOML"},
      {"[\001ssh]-shmesh =0", 1, "", "not TOML"},
      {"a = \"\"\"x\\\ufeff\"\"\"", 1, "", "saw '\\uFEFF'"},
      {"a = tr\n", 1, "", "saw 'tr?"},
      {"[mesh]\nshape = [2]\n\"a\\nb\" = 1", 3, "mesh.a?b", "'a?b'"},
      {"mesh = {shape = [30\u3bbb]}", 1, "", "saw '\u3bbb'"},
      {"mesh = {shape = [30\ufeff]}", 1, "", "saw '\\uFEFF'"},
      {"# \"\na = \"\"\"x\"\"\\\"\"\"\"\n\u00e9", 3, "", "saw '\u00e9'"},
      {"a = 'it\\'\n\u00e9 = 3", 2, "", "saw '\u00e9'"},
      {"a = [3H;;;';\u017b;;;s", 1, "", "not TOML"},
      {"shape = [1___[[['\u07cc\u0497m ]\nd = 8", 1, "", "not TOML"},
      {"''= +os_[['\u07cc\u0497zh]\na = 1", 1, "", "not TOML"},
      {"a = \"\x7f\"", 1, "", "control character"},
      {"[mesh]\n", 1, "mesh.shape", "add shape = [2, 4]"},
      {"[mesh]\nshape = 8", 2, "mesh.shape", "write it as [2, 4]"},
      {"[mesh]\nshape = []", 2, "mesh.shape", "at least one dimension"},
      {"[mesh]\nshape = [2, 0]", 2, "mesh.shape[1]", "0 is out of range"},
      {"[mesh]\nshape = [2, \"x\"]", 2, "mesh.shape[1]", "whole number"},
      {"[mesh]\nshape = [2, 2.5]", 2, "mesh.shape[1]", "whole number"},
      {"[mesh]\nshape = [100000, 100000]", 2, "mesh.shape", "more than 16777216 ranks"},
      {"[mesh]\nshape = [9223372036854775807]", 2, "mesh.shape[0]", "out of range"},
      {"[mesh]\nshape = [99999999999999999999]", 2, "", "not TOML"},
      {"[mesh]\nshape = [2, 4]\nnames = [\"dp\"]", 3, "mesh.names", "one name for each"},
      {"[mesh]\nshape = [2, 4]\nnames = [\"dp\", \"dp\"]", 3, "mesh.names", "'dp' is listed twice"},
      {"[mesh]\nshape = [2]\nnames = \"dp\"", 3, "mesh.names", "list of names"},
      {"[mesh]\nshape = [2]\nnames = [3]", 3, "mesh.names[0]", "not a string"},
      {"[mesh]\nshape = [2]\nranks = [0, 0]", 3, "mesh.ranks", "rank 0 is listed twice"},
      {"[mesh]\nshape = [2]\nranks = [0, 1, 2]", 3, "mesh.ranks", "product of the sizes"},
      {"[mesh]\nshape = [2]\nranks = [0, -1]", 3, "mesh.ranks[1]", "out of range"},
      {"[mesh]\nshape = [2]\nranks = \"0-x\"", 3, "mesh.ranks", "such as 0-3,8"},
      {"[mesh]\nshape = [2]\nranks = \"0-2000000000\"", 3, "mesh.ranks", "more than"},
      {"[mesh]\nshape = [2]\nranks = [0, 2000000000]", 3, "mesh.ranks", "out of range"},
      {"[mesh]\nshape = [2]\nsize = 2", 3, "mesh.size", "use shape, names, ranks"},
      {"[mesh]\nshape = [2]\n[extra]\n", 3, "extra", "use mesh, hosts"},
      {"[mesh]\nshape = [2]\n[hosts]\n", 3, "hosts.ranks_per_host", "is missing"},
      {"[mesh]\nshape = [2]\n[hosts]\nranks_per_host = 0", 4, "hosts.ranks_per_host", "use 1 to"},
      {"[mesh]\nshape = [8]\n[hosts]\nranks_per_host = 2\nworld = 4", 3, "hosts",
       "rank 7 of the mesh"},
      {"[mesh]\nshape = [2]\n[hosts]\nranks_per_host = 1\n[[host]]\nranks = [0]", 3, "hosts",
       "keep one"},
      {"host = 3\n[mesh]\nshape = [2]", 1, "host", "[[host]]"},
      {"host = [3]\n[mesh]\nshape = [2]", 1, "host[0]", "[[host]]"},
      {"[mesh]\nshape = [2]\n[[host]]\nname = \"a\"", 3, "host[0].ranks", "is missing"},
      {"[mesh]\nshape = [2]\n[[host]]\nranks = [0]", 3, "host", "rank 1 of the mesh"},
      {"[mesh]\nshape = [2]\n[[host]]\nname = \"\"\nranks = [0, 1]", 4, "host[0].name", "is empty"},
      {"[mesh]\nshape = [2]\n[[host]]\nranks = [0, 1]\n[[host]]\nranks = [1]", 3, "host",
       "host: rank 1 is on"},
      {"[mesh]\nshape = [2]\n[partners]\npolicy = \"best\"", 4, "partners.policy",
       "use half-shift"},
      {"[mesh]\nshape = [2]\n[partners]\npolicy = 3", 4, "partners.policy", "not a string"},
      {"[mesh]\nshape = [2]\n[partners]\ncopies = 2", 3, "partners", "use 1 to 1"},
      {"[mesh]\nshape = [2]\n[partners]\ncopies = -1", 4, "partners.copies", "use 0 to"},
      {"[mesh]\nshape = [100000]\n[partners]\ncopies = 99999", 3, "partners", "fewer copies"},
      {"[mesh]\nshape = [4]\n[hosts]\nranks_per_host = 4\n[partners]\npolicy = \"across-hosts\"", 6,
       "partners.policy", "needs 2 hosts"},
      {"[mesh]\nshape = [2]\n[partners]\nholders = [[1]]", 4, "partners.holders",
       "one list for each"},
      {"[mesh]\nshape = [2]\n[partners]\nholders = [[0], [0]]", 4, "partners.holders", "itself"},
      {"[mesh]\nshape = [2]\n[partners]\nholders = 3", 4, "partners.holders", "list of lists"},
      {"[mesh]\nshape = [2]\n[partners]\nholders = [[1], [0]]\ncopies = 1", 5, "partners.copies",
       "exclude each other"},
      {"[mesh]\nshape = [2]\n[partners]\nborrow_replicated = 1", 4, "partners.borrow_replicated",
       "true or"},
      {"tensor = 3\n[mesh]\nshape = [2]", 1, "tensor", "[[tensor]]"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [8]", 3, "tensor[0].placements",
       "is missing"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [8]\nplacements = \"S(1)\"", 6,
       "tensor[0].placements", "use -1..0"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [8]\nplacements = \"R,R\"", 6,
       "tensor[0].placements", "one for each of its 1 dimension"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [8]\nplacements = [\"Q\"]", 6,
       "tensor[0].placements[0]", "write R, S(DIM)"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [8]\nplacements = 3", 6,
       "tensor[0].placements", "not a string"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [-8]\nplacements = \"R\"", 5,
       "tensor[0].shape[0]", "out of range"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [4611686018427387904]\n"
       "placements = \"R\"",
       5, "tensor[0].shape", "smaller sizes"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [8]\ndtype = \"f31\"\nplacements = "
       "\"R\"",
       6, "tensor[0].dtype", "use bool, u8"},
      {"[mesh]\nshape = [2]\n[[tensor]]\nname = \"w\"\nshape = [8]\nplacements = \"R\"\n"
       "[[tensor]]\nname = \"w\"\nshape = [8]\nplacements = \"R\"",
       8, "tensor[1].name", "is listed twice"},
  };
  for (const Wrong& w : table) {
    INFO(w.text);
    const auto result = parse_mesh_file(w.text);
    CHECK_FALSE(result.description.has_value());
    REQUIRE(result.errors.size() >= 1);
    const MeshFileError& e = result.errors.front();
    CHECK(e.line == w.line);
    CHECK(e.key == w.key);
    CHECK_FALSE(e.fix.empty());
    CHECK_THAT(to_string(e), contains_text(w.part));
  }
}

TEST_CASE("all that is wrong in a mesh file is named, by line") {
  const auto result = parse_mesh_file(
      "[mesh]\nshape = [2]\nfoo = 1\n[partners]\npolicy = \"x\"\n[[tensor]]\nname = 3\n"
      "shape = [8]\nplacements = \"R\"\n");
  REQUIRE(result.errors.size() == 3);
  CHECK(result.errors[0].line == 3);
  CHECK(result.errors[1].line == 5);
  CHECK(result.errors[2].line == 7);
}

TEST_CASE("a mesh file that is not there is named") {
  try {
    (void)load_mesh_file("/nonexistent/x.toml");
    FAIL("no error");
  } catch (const NotFound& e) {
    CHECK_THAT(e.what(), contains_text("'/nonexistent/x.toml'"));
  }
}
