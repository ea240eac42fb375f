// The explorer as a program, for bounds that are too large for CTest:
//
//     meshstage_explorer --world 3 --steps 2 --crashes 1 --host-losses 1
//     meshstage_explorer --world 8 --steps 4 --crashes 3 --walk 1000 --seed 7 --without promise
//
// Prints the number of states and the time; on a violation the shortened trace, and exits 1.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/support/explorer/explore.hpp"
#include "tests/support/explorer/rules.hpp"

using namespace meshstage::explorer;

namespace {

int usage() {
  std::fputs(
      "usage: meshstage_explorer [--world N] [--steps N] [--crashes N] [--host-losses N]\n"
      "  [--losses-beyond N] [--lost-messages N] [--timeouts N] [--local-failures N] [--skips N] "
      "[--mismatches N]\n"
      "  [--flips N] [--zombies N] [--disk] [--finish] [--safety-only] [--without RULE] "
      "[--max-states N]\n"
      "  [--walk RUNS --seed N --walk-steps N]\n",
      stderr);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  Bounds bounds;
  Limits limits;
  int runs = 0, walk_steps = 100'000;
  std::uint64_t seed = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--disk") {
      bounds.disk = true;
      continue;
    }
    if (option == "--safety-only") {
      limits.safety_only = true;
      continue;
    }
    if (option == "--finish") {
      bounds.finish = true;
      continue;
    }
    if (i + 1 == argc) return usage();
    const char* value = argv[++i];
    if (option == "--without") {
      bool* rule = find_rule(bounds.rules, value);
      if (rule == nullptr) return usage();
      *rule = false;
      continue;
    }
    const long long number = std::strtoll(value, nullptr, 10);
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
                   {"--mismatches", &bounds.mismatches},
                   {"--flips", &bounds.flips},
                   {"--zombies", &bounds.zombies},
                   {"--walk", &runs},
                   {"--walk-steps", &walk_steps}};
    bool known = true;
    if (option == "--max-states") {
      limits.max_states = static_cast<std::uint64_t>(number);
    } else if (option == "--seed") {
      seed = static_cast<std::uint64_t>(number);
    } else {
      known = false;
      for (const auto& n : numbers) {
        if (option != n.name) continue;
        *n.target = static_cast<int>(number);
        known = true;
      }
    }
    if (!known) return usage();
  }
  const Result result = runs > 0 ? walk(bounds, seed, runs, walk_steps) : explore(bounds, limits);
  std::printf("%s\n", summary(bounds, result).c_str());
  std::fflush(stdout);
  if (result.violation.empty()) return 0;
  std::fputs(tell(bounds, shorten(bounds, result.trace)).c_str(), stdout);
  return 1;
}
