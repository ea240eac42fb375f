#include "tools/command/command.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <optional>
#include <ostream>
#include <string_view>

#include <meshstage/core/error/error.hpp>

#include "tools/device/device_state.hpp"

namespace meshstage::tools {
namespace {

constexpr const char* kExample = "Example:\n  ";

// The innermost subcommand that the arguments reached.
const CLI::App& reached(const CLI::App& app) {
  const CLI::App* here = &app;
  while (!here->get_subcommands().empty()) here = here->get_subcommands().back();
  return *here;
}

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (!text.empty() && (text.back() == ' ' || text.back() == '.')) text.pop_back();
  return text;
}

std::string command_words(const CLI::App& command) {
  const std::string& name = command.get_name();
  return command.get_parent() == nullptr ? name : command_words(*command.get_parent()) + " " + name;
}

// "; for example: ..." where the command has an example.
std::string valid_form(const CLI::App& command) {
  const std::string footer = command.get_footer();
  if (footer.rfind(kExample, 0) == 0) {
    const auto first = footer.substr(std::string(kExample).size());
    return "; for example: " + one_line(first.substr(0, first.find('\n')));
  }
  return "; see " + command_words(command) + " --help";
}

// CLI11 says of a command that there is none that one is missing. Empty: it is right.
std::string unknown_command(const CLI::App& here) {
  const auto words = here.remaining();
  if (here.get_require_subcommand_min() == 0 || words.empty()) return {};
  const auto& word = words.front();
  if (word.starts_with('-')) return "the argument " + word.substr(0, 80) + " was not expected";
  std::string text = "there is no command \"" + word.substr(0, 80) + "\"; there are";
  for (const auto* command : here.get_subcommands([](const CLI::App*) { return true; })) {
    text += (text.ends_with(" are") ? " " : ", ") + command->get_name();
  }
  return text;
}

// CLI11's "Could not convert: --ranks = x".
std::string not_converted(std::string what) {
  constexpr std::string_view kBegin = "Could not convert: ";
  const auto equals = what.find(" = ");
  if (!what.starts_with(kBegin) || equals == std::string::npos) return what;
  const auto option = what.substr(kBegin.size(), equals - kBegin.size());
  return option + " " + what.substr(equals + 3) + ": this is no value of " + option;
}

// The first argument that nothing takes; CLI11 also lists a "--" before it.
std::optional<std::string> unexpected(const CLI::App& here) {
  for (const auto& word : here.remaining()) {
    if (word != "--") return "the argument " + word.substr(0, 80) + " was not expected";
  }
  return std::nullopt;
}

}  // namespace

void set_example(CLI::App& command, const std::string& example) {
  command.footer(kExample + example);
}

CLI::Validator whole_number() {
  return {[](const std::string& text) {
            const bool digits = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
              return c >= '0' && c <= '9';
            });
            return digits ? std::string() : text + ": write a whole number";
          },
          ""};
}

int run_command(CLI::App& app, std::vector<std::string> arguments, std::ostream& out,
                std::ostream& err) {
  const auto fail = [&](const std::string& what, int code, bool with_form) {
    const CLI::App& command = reached(app);
    err << command_words(command) << ": " << one_line(what)
        << (with_form ? valid_form(command) : std::string()) << "\n";
    return code;
  };
  // Half an answer with exit code 0 would be taken for a whole one.
  const auto written = [&](int code) {
    if (out.flush()) return code;
    return fail("the output cannot be written: the disk is full, or the output closed", 1, false);
  };
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first
  try {
    app.parse(std::move(arguments));
    return written(0);
  } catch (const CLI::RuntimeError& e) {
    return written(e.get_exit_code());
  } catch (const CLI::Success& e) {
    // "meshstage nonsense --help" is a request for help on something that does not exist.
    const auto unknown = dynamic_cast<const CLI::CallForHelp*>(&e) == nullptr
                             ? std::string()
                             : unknown_command(reached(app));
    if (!unknown.empty()) return fail(unknown, 2, false);
    app.exit(e, out, err);
    return written(0);
  } catch (const CLI::RequiredError& e) {
    const auto unknown = unknown_command(reached(app));
    return unknown.empty() ? fail(e.what(), 2, true) : fail(unknown, 2, false);
  } catch (const CLI::ConversionError& e) {
    return fail(not_converted(e.what()), 2, true);
  } catch (const CLI::ExtrasError& e) {
    return fail(unexpected(reached(app)).value_or(e.what()), 2, true);
  } catch (const CLI::ParseError& e) {
    return fail(e.what(), 2, true);
  } catch (const DeviceUnusable& e) {
    return fail(e.what(), kDeviceUnusable, false);
  } catch (const std::bad_alloc&) {
    return fail("out of memory", 1, false);
  } catch (const Error& e) {
    const bool wrong_input =
        e.kind() == ErrorKind::kInvalidArgument || e.kind() == ErrorKind::kNotFound;
    return fail(wrong_input ? e.message() : e.what(), wrong_input ? 2 : 1, false);
  } catch (const std::exception& e) {  // of the standard library, and nobody's intention
    return fail(e.what(), 1, false);
  }
}

}  // namespace meshstage::tools
