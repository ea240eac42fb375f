// Meshes and layouts against tables that PyTorch made (tests/data/mesh).
#include <fstream>
#include <nlohmann/json.hpp>

#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/layout.hpp>
#include "tests/support/catch.hpp"

using namespace meshstage;
using nlohmann::json;

namespace {

json cases(const std::string& file) {
  std::ifstream in(std::string(MESHSTAGE_TEST_DATA) + "/mesh/" + file);
  REQUIRE(in.good());
  json all = json::parse(in).at("cases");
  REQUIRE(all.size() >= 10);
  return all;
}

// Ranks of a mesh as nested lists.
json nested(const DeviceMesh& mesh, std::size_t dim, std::int64_t& place) {
  if (dim == mesh.ndim()) return mesh.rank_at(place++);
  json out = json::array();
  for (std::int64_t i = 0; i < mesh.shape()[dim]; ++i) out.push_back(nested(mesh, dim + 1, place));
  return out;
}
json nested(const DeviceMesh& mesh) {
  std::int64_t place = 0;
  return nested(mesh, 0, place);
}

}  // namespace

TEST_CASE("every rank's local shape and global offset is that of PyTorch") {
  std::size_t ranks = 0;
  for (const json& c : cases("layout.json")) {
    Placements placements;
    for (const auto& p : c.at("placements")) {
      placements.push_back(parse_placement(p.get<std::string>()));
    }
    const auto tensor = c.at("tensor").get<std::vector<std::int64_t>>();
    const auto shape = c.at("mesh").get<std::vector<std::int64_t>>();
    const Layout layout(shape, tensor, placements);
    const DeviceMesh mesh = DeviceMesh::from_shape(shape);
    INFO("mesh " << c.at("mesh") << " tensor " << c.at("tensor") << " " << c.at("placements"));
    REQUIRE(static_cast<std::int64_t>(c.at("ranks").size()) == mesh.size());
    int rank = 0;
    for (const json& r : c.at("ranks")) {
      const auto coordinate = r.at("coordinate").get<std::vector<std::int64_t>>();
      const LocalShard shard = layout.at(coordinate);
      CHECK(json(shard.shape) == r.at("shape"));
      CHECK(json(shard.offset) == r.at("offset"));
      CHECK(layout.local_numel(coordinate) == shard.numel());
      CHECK(mesh.coordinate(rank) == coordinate);
      CHECK(local_shard(mesh, rank, tensor, placements) == shard);
      ++rank;
      ++ranks;
    }
  }
  CHECK(ranks > 500);
}

TEST_CASE("coordinates, slices and groups are those of PyTorch") {
  for (const json& c : cases("mesh.json")) {
    const DeviceMesh mesh = DeviceMesh::from_ranks(c.at("ranks").get<std::vector<int>>(),
                                                   c.at("shape").get<std::vector<std::int64_t>>(),
                                                   c.at("names").get<std::vector<std::string>>());
    const auto slice_names = c.at("slice_names").get<std::vector<std::string>>();
    INFO(mesh);
    CHECK(json(mesh.ranks()) == c.at("ranks"));
    for (const json& r : c.at("per_rank")) {
      const int rank = r.at("rank");
      CHECK(json(mesh.coordinate(rank).value()) == r.at("coordinate"));
      CHECK(nested(mesh.slice(slice_names, rank)) == r.at("slice"));
      for (const auto& [name, group] : r.at("groups").items()) {
        CHECK(json(mesh.group(rank, name)) == group);
        CHECK(group.at(static_cast<std::size_t>(mesh.local_rank(rank, name))) == rank);
      }
    }
  }
}
