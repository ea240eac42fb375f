#pragma once
#include <iosfwd>

#include <CLI/CLI.hpp>

namespace meshstage::tools {

/// `meshstage store`: the server of a tcp:// store, until a signal ends it. Prints its address to
/// `out` once it listens.
void add_store_command(CLI::App& app, std::ostream& out);

}  // namespace meshstage::tools
