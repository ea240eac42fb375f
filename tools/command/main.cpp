// The `meshstage` command. Subcommands register themselves, one line each.
#include <unistd.h>

#include <iostream>
#include <optional>

#include "tools/bench/command.hpp"
#include "tools/command/command.hpp"
#include "tools/command/help.hpp"
#include "tools/command/terminal.hpp"
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
  meshstage::tools::shorten_summaries(app);
  app.set_version_flag("--version", std::string("meshstage ") + meshstage::tools::kVersion);

  // Nothing is wider than a terminal; what goes into a pipe or a file is as it is.
  const auto width = meshstage::tools::terminal_width(STDOUT_FILENO);
  const auto error_width = meshstage::tools::terminal_width(STDERR_FILENO);
  std::optional<meshstage::tools::FoldingStream> folded_out;
  std::optional<meshstage::tools::FoldingStream> folded_err;
  if (width) folded_out.emplace(std::cout, *width);
  if (error_width) folded_err.emplace(std::cerr, *error_width);
  std::ostream& out = folded_out ? *folded_out : std::cout;
  std::ostream& err = folded_err ? *folded_err : std::cerr;

  meshstage::tools::add_mesh_commands(app, out, width);
  meshstage::tools::add_drill_command(app);
  meshstage::tools::add_bench_command(app, out);
  meshstage::tools::add_run_command(app);
  meshstage::tools::add_store_command(app, out);
  meshstage::tools::add_snapshot_commands(app, out, meshstage::tools::ask_on_terminal());
  meshstage::tools::add_help_command(app, meshstage::tools::kVersion, out);

  const int code = meshstage::tools::run_command(app, {argv + 1, argv + argc}, out, err);
  out.flush();
  return code;
}
