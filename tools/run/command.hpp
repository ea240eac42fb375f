#pragma once
#include <CLI/CLI.hpp>

namespace meshstage::tools {

/// `meshstage run`: starts the ranks of one host and starts anew those that die.
void add_run_command(CLI::App& app);

}  // namespace meshstage::tools
