#pragma once
#include <functional>
#include <iosfwd>
#include <string>

#include <CLI/CLI.hpp>

namespace meshstage::tools {

/// Asks a person a question that is answered with yes or no; empty where there is nobody to ask.
using Confirm = std::function<bool(const std::string& question)>;

/// Adds `ls`, `inspect`, `verify`, `diff`, `export`, `clean`, `info` and `doctor`, which print to
/// `out`. `out` must live as long as `app` is used. `confirm` is what `clean` asks.
void add_snapshot_commands(CLI::App& app, std::ostream& out, Confirm confirm = {});

/// A Confirm that asks on the terminal, if standard input and output are one; else empty.
[[nodiscard]] Confirm ask_on_terminal();

}  // namespace meshstage::tools
