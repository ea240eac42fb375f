#include "tools/mesh/commands.hpp"

#include "tools/command/command.hpp"

namespace meshstage::tools {

void add_mesh_commands(CLI::App& app, std::ostream& out) {
  (void)out;
  CLI::App* mesh =
      app.add_subcommand("mesh", "What a mesh means and what it survives, without a job");
  mesh->require_subcommand(1);
}

}  // namespace meshstage::tools
