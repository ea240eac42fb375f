#include "tools/command/command.hpp"

#include <algorithm>
#include <new>
#include <ostream>

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
    app.exit(e, out, err);
    return written(0);
  } catch (const CLI::RequiredError& e) {
    const auto unknown = unknown_command(reached(app));
    return unknown.empty() ? fail(e.what(), 2, true) : fail(unknown, 2, false);
  } catch (const CLI::ParseError& e) {
    return fail(e.what(), 2, true);
  } catch (const DeviceUnusable& e) {
    return fail(e.what(), kDeviceUnusable, false);
  } catch (const std::bad_alloc&) {
    return fail("out of memory", 1, false);
  } catch (const Error& e) {
    const bool wrong_input =
        e.kind() == ErrorKind::kInvalidArgument || e.kind() == ErrorKind::kNotFound;
    std::string what = e.what();
    const std::string kind = std::string(to_string(e.kind())) + ": ";
    if (wrong_input && what.rfind(kind, 0) == 0) what.erase(0, kind.size());
    return fail(what, wrong_input ? 2 : 1, false);
  }
}

}  // namespace meshstage::tools
