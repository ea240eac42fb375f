#pragma once
#include <iosfwd>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <meshstage/core/error/error.hpp>

/// The `meshstage` command: how subcommands join it and how it ends.
///
/// A group of commands is one function `void add_x_commands(CLI::App& app, ...)`, called from
/// main.cpp. Its callbacks do the work and
///   - return: exit 0;
///   - throw CLI::RuntimeError(1): the answer is negative (it has been printed); exit 1;
///   - throw meshstage::InvalidArgument or NotFound: one clear line on stderr, exit 2;
///   - throw DeviceUnusable (tools/device): one line on stderr, exit 3;
///   - throw any other meshstage::Error (a peer died, a disk is full), or an exception of the
///     standard library: one line on stderr, exit 1.
namespace meshstage::tools {

/// Ends `command`'s --help with an example, and shows it when the arguments are wrong:
/// give the words as typed, e.g. "meshstage mesh show --mesh 2,4 --names dp,tp".
void set_example(CLI::App& command, const std::string& example);

/// For options of an unsigned type: what CLI11 reads of "-1" is 2^64 - 1, and 1.5 is no number of
/// anything. Says "-1: write a whole number".
[[nodiscard]] CLI::Validator whole_number();

/// Parses `arguments` (without the program's name), runs the chosen subcommand and returns the exit
/// code. Help goes to `out`, everything that is wrong is one line on `err`.
int run_command(CLI::App& app, std::vector<std::string> arguments, std::ostream& out,
                std::ostream& err);

}  // namespace meshstage::tools
