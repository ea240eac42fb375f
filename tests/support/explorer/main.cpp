// The explorer as a program, for bounds that are too large for CTest:
//
//     meshstage_explorer --world 3 --steps 2 --crashes 1 --host-losses 1
//     meshstage_explorer --world 8 --steps 4 --crashes 3 --walk 1000 --seed 7 --without promise
//     meshstage_explorer --world 3 --steps 1 --host-losses 1 --lenders 2
//     meshstage_explorer --world 2 --steps 2 --crashes 1 --without promise >run.txt
//     meshstage_explorer --replay run.txt
//
// Prints the number of states and the time; on a violation the shortened run, and exits 1. What it
// printed is what --replay reads: the options, and the numbered lines.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/explorer/explore.hpp"
#include "tests/support/explorer/rules.hpp"

using namespace meshstage::explorer;

namespace {

constexpr const char* kUsage =
    "usage: meshstage_explorer [--world N] [--steps N] [--crashes N] [--host-losses N]\n"
    "  [--losses-beyond N] [--lost-messages N] [--timeouts N] [--local-failures N] [--skips N] "
    "[--mismatches N]\n"
    "  [--flips N] [--zombies N] [--unanswered N] [--differences N] [--lenders SHIFT] [--disk] "
    "[--local-disks] "
    "[--old-job] [--old-memory] [--old-apart] [--any-cut] [--finish]\n"
    "  [--early-ends N] (with --finish) [--claims N] [--ends N] [--reseats N] [--seats N] [--hangs "
    "N] [--waits N] [--slow-disks N] [--stuck-disks N]\n"
    "  [--safety-only] [--without RULE] [--max-states N]\n"
    "  [--walk RUNS --seed N --walk-steps N]\n"
    "meshstage_explorer --replay FILE\n";
constexpr const char* kOptionsLine = "options:";

struct Command {
  Bounds bounds;
  Limits limits;
  int runs = 0;
  int walk_steps = 100'000;
  std::uint64_t seed = 1;
};

/// Throws std::invalid_argument naming the word that is none.
Command parse(const std::vector<std::string>& words) {
  Command c;
  Bounds& bounds = c.bounds;
  int lender_shift = 0;  // rank r's replicas borrow from rank r + shift
  const struct {
    const char* name;
    int* target;
  } numbers[] = {{"--world", &bounds.world},
                 {"--steps", &bounds.steps},
                 {"--crashes", &bounds.crashes},
                 {"--host-losses", &bounds.host_losses},
                 {"--losses-beyond", &bounds.losses_beyond},
                 {"--lost-messages", &bounds.lost_messages},
                 {"--timeouts", &bounds.timeouts},
                 {"--local-failures", &bounds.local_failures},
                 {"--skips", &bounds.skips},
                 {"--early-ends", &bounds.early_ends},
                 {"--ends", &bounds.ends},
                 {"--mismatches", &bounds.mismatches},
                 {"--flips", &bounds.flips},
                 {"--zombies", &bounds.zombies},
                 {"--unanswered", &bounds.unanswered},
                 {"--differences", &bounds.differences},
                 {"--claims", &bounds.claims},
                 {"--reseats", &bounds.reseats},
                 {"--seats", &bounds.seats},
                 {"--hangs", &bounds.hangs},
                 {"--waits", &bounds.waits},
                 {"--slow-disks", &bounds.slow_disks},
                 {"--stuck-disks", &bounds.stuck_disks},
                 {"--lenders", &lender_shift},
                 {"--walk", &c.runs},
                 {"--walk-steps", &c.walk_steps}};
  const struct {
    const char* name;
    bool* target;
  } flags[] = {{"--disk", &bounds.disk},
               {"--local-disks", &bounds.local_disks},
               {"--old-job", &bounds.old_job},
               {"--old-memory", &bounds.old_memory},
               {"--old-rot", &bounds.old_rot},
               {"--old-unclaimed", &bounds.old_unclaimed},
               {"--old-apart", &bounds.old_apart},
               {"--old-kept", &bounds.old_kept},
               {"--any-cut", &bounds.any_cut},
               {"--finish", &bounds.finish},
               {"--safety-only", &c.limits.safety_only}};
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& option = words[i];
    bool known = false;
    for (const auto& flag : flags) {
      if (option != flag.name) continue;
      known = *flag.target = true;
    }
    if (known) continue;
    if (++i == words.size()) throw std::invalid_argument(option);
    const std::string& value = words[i];
    if (option == "--without") {
      bool* rule = find_rule(bounds.rules, value);
      if (rule == nullptr) throw std::invalid_argument(value);
      *rule = false;
      continue;
    }
    const long long number = std::strtoll(value.c_str(), nullptr, 10);
    if (option == "--max-states") {
      c.limits.max_states = static_cast<std::uint64_t>(number);
      continue;
    }
    if (option == "--seed") {
      c.seed = static_cast<std::uint64_t>(number);
      continue;
    }
    for (const auto& n : numbers) {
      if (option != n.name) continue;
      *n.target = static_cast<int>(number);
      known = true;
    }
    if (!known) throw std::invalid_argument(option);
  }
  for (int r = 0; lender_shift != 0 && r < bounds.world; ++r) {
    bounds.lenders.push_back({(r + lender_shift) % bounds.world});
  }
  return c;
}

std::vector<std::string> words_of(const std::string& line) {
  std::istringstream in(line);
  return {std::istream_iterator<std::string>(in), {}};
}

/// 1 if the run still ends in a violation, as it did when it was found.
int replay_file(const char* path) {
  std::ifstream in(path);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto at = text.find(kOptionsLine);
  if (!in || at == std::string::npos) throw std::invalid_argument(path);
  const auto begin = at + std::string_view(kOptionsLine).size();
  const Command c = parse(words_of(text.substr(begin, text.find('\n', at) - begin)));
  const std::string told = tell(c.bounds, read_trace(c.bounds, text));
  std::cout << told;
  return told.find("VIOLATED: ") == std::string::npos ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    if (words.size() == 2 && words[0] == "--replay") return replay_file(argv[2]);
    const Command c = parse(words);
    const Result result =
        c.runs > 0 ? walk(c.bounds, c.seed, c.runs, c.walk_steps) : explore(c.bounds, c.limits);
    std::cout << summary(c.bounds, result) << std::endl;
    if (result.violation.empty()) return 0;
    std::cout << kOptionsLine;
    for (const auto& word : words) std::cout << ' ' << word;
    std::cout << '\n' << tell(c.bounds, shorten(c.bounds, result.trace));
    return 1;
  } catch (const std::invalid_argument& e) {
    std::cerr << "meshstage_explorer: " << e.what() << '\n' << kUsage;
    return 2;
  }
}
