#pragma once
#include <iosfwd>

#include <CLI/CLI.hpp>

namespace meshstage::tools {

/// Adds `meshstage bench`: how fast this machine stages, replicates, recovers and persists, and
/// what it could at most.
void add_bench_command(CLI::App& app, std::ostream& out);

}  // namespace meshstage::tools
