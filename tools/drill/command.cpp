#include "tools/drill/command.hpp"

#include <csignal>
#include <cstdio>
#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <meshstage/core/points/points.hpp>

#include "tools/command/command.hpp"
#include "tools/device/device_state.hpp"
#include "tools/drill/arguments.hpp"
#include "tools/drill/drill.hpp"

namespace meshstage::tools {
namespace {

using drill::Arguments;
using drill::Display;
using drill::Verdict;

constexpr const char* kDescription = "Train, kill ranks, and show that nothing is lost";
constexpr const char* kMore =
    "Trains the example on several ranks, twice: first undisturbed and without checkpoints, then\n"
    "staging a checkpoint every few steps, with the given faults. Ranks that die are replaced\n"
    "while the others stay up. At the end every bit of every rank is compared.\n"
    "Without any fault option a rank in the middle loses its host while it receives its ward's\n"
    "image (--lose 2@87:chunk-received with the default numbers), and comes back from the memory\n"
    "of the rank that holds its replica.\n"
    "With --restart ... :ranks=N the undisturbed run comes last: each number of ranks trains the\n"
    "steps that it trained with the faults, from states handed over in files.\n"
    "With --device cuda the states live in devices' memory and are staged, replicated and "
    "recovered\n"
    "there; each step computes on the host, on copies. The undisturbed run stays in host memory, "
    "so\n"
    "that every bit which went through a device is compared with one that did not. With\n"
    "--collectives nccl, too, gradients are averaged over NCCL on the devices, in both runs.\n"
    "Exit code: 0 if parameters, optimizer state and every step's loss are bit-identical to the\n"
    "undisturbed run, every fault happened, and no complete step was lost; 1 if not; 2 for wrong\n"
    "arguments; 3 if the device, NCCL or namespaces cannot be used.\n";

// The short description is for the list of commands; --help of the drill says more.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_description(const CLI::App* app) const override {
    std::string text = CLI::Formatter::make_description(app) + kMore + "Points:";
    std::size_t column = 7;
    for (const auto point : all_points()) {
      const std::string name = " " + std::string(to_string(point));
      if (column + name.size() > 96) {
        text += "\n       ";
        column = 7;
      }
      text += name;
      column += name.size();
    }
    return text + "\n";
  }
};

// Prints the verdict; true if it is good. With --json what is wrong stands on standard error.
bool say(const Arguments& arguments, const Verdict& verdict, Display& display) {
  const auto wrong = [&](const std::string& what) {
    display.line(what);
    if (arguments.json) std::fprintf(stderr, "meshstage drill: %s\n", what.c_str());
  };
  if (arguments.json) std::printf("%s\n", drill::to_json_text(arguments, verdict).c_str());
  if (verdict.difference) {
    wrong("DIFFERENT: " + *verdict.difference);
  } else {
    std::string ranks;
    for (const auto& world : verdict.result.worlds) {
      ranks += fmt::format("{}{}", ranks.empty() ? "" : ", then ", world.ranks);
    }
    display.line(fmt::format("IDENTICAL: {} steps, {} rank{}, every bit", arguments.steps, ranks,
                             ranks == "1" ? "" : "s"));
  }
  for (const auto& fault : verdict.result.never_happened) {
    wrong(fmt::format("NOT DONE: {} never happened: that {} was not passed", fault.text(),
                      fault.point.empty() ? "step" : "point"));
  }
  for (const auto& what : verdict.result.grown) wrong("GROWN: " + what);
  for (const auto& what : verdict.result.wrong) wrong("WRONG: " + what);
  return verdict.good();
}

void run(const Arguments& arguments) {
  // Where they cannot be had the drill ends here.
  (void)choose_collectives(arguments.collectives, choose_device(arguments.device));
  Display display(stdout, arguments.json ? Display::Mode::kSilent : Display::mode_for(stdout));
  bool good = false;
  try {
    good = say(arguments, drill::run_drill(arguments, display), display);
  } catch (const drill::JobFailed& e) {
    display.clear_bar();
    std::fprintf(stderr, "meshstage drill: %s", e.what());
  } catch (const hosts::HostsUnusable& e) {
    display.clear_bar();
    std::fprintf(stderr, "meshstage drill: --hosts namespaces: %s\n", e.what());
    throw CLI::RuntimeError(hosts::kHostsUnusable);
  } catch (const drill::Interrupted& e) {
    display.clear_bar();
    std::fprintf(stderr, "meshstage drill: interrupted; all ranks were ended, nothing is left\n");
    throw CLI::RuntimeError(128 + e.signal);
  }
  if (!good) throw CLI::RuntimeError(1);
}

}  // namespace

void add_drill_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("drill", kDescription);
  auto parser = std::make_shared<drill::ArgumentParser>();
  parser->add_to(*command);
  command->formatter(std::make_shared<HelpFormatter>());
  set_example(*command, "meshstage drill --ranks 4 --steps 200 --every 5 --kill 2@87 --lose 3@60");
  command->callback([parser] { run(parser->complete()); });
}

}  // namespace meshstage::tools
