#pragma once
#include <sstream>
#include <string>
#include <vector>

#include "tools/command/command.hpp"
#include "tools/mesh/commands.hpp"

/// What `meshstage mesh ...` prints and returns, in this process.
struct Answer {
  int code = -1;
  std::string out;
  std::string err;
};

inline int run_mesh(std::vector<std::string> arguments, std::ostream& out, std::ostream& err) {
  CLI::App app{"meshstage", "meshstage"};
  app.require_subcommand(1);
  meshstage::tools::add_mesh_commands(app, out);
  arguments.insert(arguments.begin(), "mesh");
  return meshstage::tools::run_command(app, std::move(arguments), out, err);
}

inline Answer run_mesh(std::vector<std::string> arguments) {
  std::ostringstream out;
  std::ostringstream err;
  const int code = run_mesh(std::move(arguments), out, err);
  return {code, out.str(), err.str()};
}

/// A job of eight ranks on two hosts, with two tensors.
inline constexpr const char* kMeshFile = R"toml([mesh]
shape = [2, 4]
names = ["dp", "tp"]
[hosts]
ranks_per_host = 4
hosts_per_rack = 1
[partners]
policy = "across-hosts"
[[tensor]]
name = "w"
shape = [16, 8]
placements = "R,S(0)"
[[tensor]]
name = "x"
shape = [4, 6, 5]
placements = "S(0),S(1)"
)toml";
