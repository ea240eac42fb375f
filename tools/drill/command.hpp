#pragma once

namespace CLI {
class App;
}

namespace meshstage::tools {

/// Adds `meshstage drill`. Prints to standard output (the bar needs a terminal's descriptor).
void add_drill_command(CLI::App& app);

}  // namespace meshstage::tools
