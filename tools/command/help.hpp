#pragma once
#include <iosfwd>
#include <string>

#include <CLI/CLI.hpp>

namespace meshstage::tools {

/// `meshstage help [TOPIC...]`: a command's help, or one of
///   environment         the table of environment variables
///   man                 the manual page, in roff
///   bash, zsh           the shell's completion script
/// The last three are made from the commands of `app` itself, so they cannot fall behind it; the
/// build installs them. Add it last.
void add_help_command(CLI::App& app, const std::string& version, std::ostream& out);

/// In the help of a group each command's line is the first sentence about it; the rest is in the
/// command's own help. Call it before commands are added.
void shorten_summaries(CLI::App& app);

}  // namespace meshstage::tools
