#pragma once
#include <iosfwd>

#include <CLI/CLI.hpp>

namespace meshstage::tools {

/// Adds `mesh show | shard | partners | survive | check | draw`, which print to `out`.
/// `out` must live as long as `app` is used.
void add_mesh_commands(CLI::App& app, std::ostream& out);

}  // namespace meshstage::tools
