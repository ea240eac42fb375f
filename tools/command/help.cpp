#include "tools/command/help.hpp"

#include <algorithm>
#include <memory>
#include <ostream>
#include <sstream>
#include <string_view>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/environment.hpp>

namespace meshstage::tools {
namespace {

using Commands = std::vector<const CLI::App*>;

Commands commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App* command) { return !command->get_name().empty(); });
}

std::string path_of(const CLI::App& command) {
  const auto* const parent = command.get_parent();
  return parent == nullptr ? command.get_name() : path_of(*parent) + " " + command.get_name();
}

/// The command and all below it, each before its own.
void collect(const CLI::App& command, Commands& all) {
  all.push_back(&command);
  for (const auto* below : commands_of(command)) collect(*below, all);
}

Commands all_commands(const CLI::App& app) {
  Commands all;
  collect(app, all);
  return all;
}

/// Text of a manual page: no character that roff would take for a command.
std::string roff(std::string_view text) {
  std::string result;
  bool at_start = true;
  for (const char c : text) {
    if (c == '\n') {
      result += "\n.br\n";
      at_start = true;
      continue;
    }
    if (at_start && (c == '.' || c == '\'')) result += "\\&";
    if (c == '\\') {
      result += "\\e";
    } else if (c == '-') {
      result += "\\-";
    } else {
      result += c;
    }
    at_start = false;
  }
  return result;
}

void print_options(const CLI::App& command, std::ostream& out) {
  for (const auto* option : command.get_options()) {
    const std::string name = option->get_name(option->get_positional(), true);
    out << ".TP\n\\fB" << roff(name) << "\\fR";
    if (option->get_type_size() != 0 && !option->get_positional()) {
      out << " \\fI" << roff(option->get_type_name()) << "\\fR";
    }
    out << "\n" << roff(option->get_description());
    if (!option->get_default_str().empty()) {
      out << " (default: " << roff(option->get_default_str()) << ")";
    }
    out << "\n";
  }
}

void print_manual(const CLI::App& app, const std::string& version, std::ostream& out) {
  out << ".TH MESHSTAGE 1 \"\" \"meshstage " << roff(version) << "\" \"User Commands\"\n"
      << ".SH NAME\nmeshstage \\- replicated in\\-memory checkpoints for distributed training\n"
      << ".SH SYNOPSIS\n.B meshstage\n\\fICOMMAND\\fR [\\fIOPTIONS\\fR]\n"
      << ".SH COMMANDS\n";
  for (const auto* command : all_commands(app)) {
    if (command == &app || !commands_of(*command).empty()) continue;
    out << ".SS " << roff(path_of(*command)) << "\n" << roff(command->get_description()) << "\n";
    print_options(*command, out);
    if (const auto footer = command->get_footer(); !footer.empty()) {
      out << ".PP\n" << roff(footer) << "\n";
    }
  }
  out << ".SH ENVIRONMENT\n";
  for (const auto& variable : environment_variables()) {
    out << ".TP\n\\fB" << variable.name << "\\fR=\\fI" << roff(variable.value) << "\\fR\n"
        << roff(variable.meaning) << "\n";
  }
  out << ".SH EXIT STATUS\n"
      << ".TP\n0\nthe command succeeded\n"
      << ".TP\n1\nthe answer is negative, or something failed\n"
      << ".TP\n2\nthe arguments are wrong, or name something that does not exist\n"
      << ".TP\n3\nthe device, or NCCL, that was asked for cannot be used\n"
      << ".PP\nmeshstage run ends with the code of the rank that ended the job\n";
}

/// What may follow a command: the commands below it, and its options.
std::string words_of(const CLI::App& command) {
  std::string words;
  const auto add = [&words](const std::string& word) {
    words += (words.empty() ? "" : " ") + word;
  };
  for (const auto* below : commands_of(command)) add(below->get_name());
  for (const auto* option : command.get_options()) {
    for (const auto& name : option->get_lnames()) add("--" + name);
  }
  return words;
}

/// The two parts that both shells' scripts have: which words lead to a command, and what may follow
/// each command.
void print_cases(const CLI::App& app, const char* descend, const char* offer, std::ostream& out) {
  const Commands all = all_commands(app);
  out << descend;
  bool first = true;
  for (const auto* command : all) {
    if (command == &app) continue;
    out << (first ? "      " : "|") << "'" << path_of(*command) << "'";
    first = false;
  }
  out << ") here=\"$here $word\" ;;\n    esac\n  done\n  case $here in\n";
  for (const auto* command : all) {
    out << "    '" << path_of(*command) << "') " << offer << words_of(*command) << "' ;;\n";
  }
  out << "  esac\n";
}

void print_bash(const CLI::App& app, std::ostream& out) {
  out << "# Completion of meshstage for bash, made by: meshstage help bash\n"
      << "_meshstage() {\n"
      << "  local here=meshstage word offered=''\n";
  print_cases(app,
              "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
              "    case \"$here $word\" in\n",
              "offered='", out);
  out << "  mapfile -t COMPREPLY < <(compgen -W \"$offered\" -- \"${COMP_WORDS[COMP_CWORD]}\")\n"
      << "}\n"
      << "complete -o default -F _meshstage meshstage\n";
}

void print_zsh(const CLI::App& app, std::ostream& out) {
  out << "#compdef meshstage\n"
      << "# Completion of meshstage for zsh, made by: meshstage help zsh\n"
      << "_meshstage() {\n"
      << "  local here=meshstage word offered=''\n";
  print_cases(app,
              "  for word in ${words[2,CURRENT-1]}; do\n"
              "    case \"$here $word\" in\n",
              "offered='", out);
  out << "  compadd -- ${=offered}\n"
      << "  _files\n"
      << "}\n"
      << "_meshstage \"$@\"\n";
}

void print_environment(std::ostream& out) {
  for (const auto& variable : environment_variables()) {
    out << variable.name << "\n    " << variable.meaning << "\n    value: " << variable.value
        << "\n";
  }
  out << "\nRank and world size also come from the variables of torchrun, mpirun and srun.\n";
}

const CLI::App& find_command(const CLI::App& app, const std::vector<std::string>& words) {
  const CLI::App* here = &app;
  for (const auto& word : words) {
    const Commands below = commands_of(*here);
    const auto found = std::find_if(below.begin(), below.end(), [&](const CLI::App* command) {
      return command->get_name() == word;
    });
    if (found == below.end()) {
      throw InvalidArgument("there is no help on \"" + word.substr(0, 80) +
                            "\"; topics are each command, environment, man, bash and zsh");
    }
    here = *found;
  }
  return *here;
}

}  // namespace

void shorten_summaries(CLI::App& app) {
  class Short final : public CLI::Formatter {
    std::string make_subcommand(const CLI::App* command) const override {
      const std::string all = command->get_description();
      const auto end = std::min(all.find(". "), all.find('\n'));
      std::ostringstream line;
      CLI::detail::format_help(line, command->get_name(), all.substr(0, end), get_column_width());
      return line.str();
    }
  };
  app.formatter(std::make_shared<Short>());
}

void add_help_command(CLI::App& app, const std::string& version, std::ostream& out) {
  auto* const command = app.add_subcommand(
      "help", "Explains a command or the environment variables, or prints a manual");
  const auto topics = std::make_shared<std::vector<std::string>>();
  command->add_option("topic", *topics, "A command, or environment, man, bash, zsh");
  command->callback([&app, &out, version, topics] {
    const std::string topic = topics->size() == 1 ? topics->front() : "";
    if (topic == "environment") return print_environment(out);
    if (topic == "man") return print_manual(app, version, out);
    if (topic == "bash") return print_bash(app, out);
    if (topic == "zsh") return print_zsh(app, out);
    const CLI::App& named = find_command(app, *topics);
    // CLI::App::help() of the program would explain the command that was given, this one.
    out << app.get_formatter()->make_help(&named, path_of(named), CLI::AppFormatMode::Normal);
  });
}

}  // namespace meshstage::tools
