// The `meshstage` command. Subcommands register themselves, one line each.
#include <iostream>

#include "tools/bench/command.hpp"
#include "tools/command/command.hpp"
#include "tools/command/help.hpp"
#include "tools/drill/command.hpp"
#include "tools/mesh/commands.hpp"
#include "tools/run/command.hpp"
#include "tools/snapshot/build_info.hpp"
#include "tools/snapshot/commands.hpp"
#include "tools/store/command.hpp"

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  CLI::App app{"meshstage: replicated in-memory checkpoints for distributed training", "meshstage"};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("meshstage ") + meshstage::tools::kVersion);

  meshstage::tools::add_mesh_commands(app, std::cout);
  meshstage::tools::add_drill_command(app);
  meshstage::tools::add_bench_command(app, std::cout);
  meshstage::tools::add_run_command(app);
  meshstage::tools::add_store_command(app, std::cout);
  meshstage::tools::add_snapshot_commands(app, std::cout, meshstage::tools::ask_on_terminal());
  meshstage::tools::add_help_command(app, meshstage::tools::kVersion, std::cout);

  const int code =
      meshstage::tools::run_command(app, {argv + 1, argv + argc}, std::cout, std::cerr);
  std::cout.flush();
  return code;
}
