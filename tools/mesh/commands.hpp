#pragma once
#include <cstddef>
#include <iosfwd>
#include <optional>

#include <CLI/CLI.hpp>

namespace meshstage::tools {

/// Adds `mesh show | shard | partners | survive | check | draw`, which print to `out`; pictures are
/// at most `width` columns wide. `out` must live as long as `app` is used.
void add_mesh_commands(CLI::App& app, std::ostream& out, std::optional<std::size_t> width = {});

}  // namespace meshstage::tools
