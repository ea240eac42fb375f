#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/explorer/world.hpp"

/// Runs through what can happen in a world: all of it, or at random.
namespace meshstage::explorer {

struct Limits {
  std::uint64_t max_states = 50'000'000;  ///< stop (incomplete) beyond
  bool safety_only = false;               ///< coming to rest in the wrong place is no violation
};

struct Result {
  std::uint64_t states = 0;  ///< distinct worlds
  std::uint64_t edges = 0;   ///< choices applied
  std::uint64_t depth = 0;   ///< longest run
  double seconds = 0;
  bool complete = true;       ///< every reachable world was seen (or a violation was found)
  std::string violation;      ///< empty: none
  std::vector<Choice> trace;  ///< leads to the violation
};

/// Every world reachable within the bounds, depth first, each once (told apart by 128 bits of hash;
/// for 10 million states the odds of one collision are below 1e-24).
[[nodiscard]] Result explore(const Bounds& bounds, Limits limits = {});

/// Seeded random runs, each until nothing can happen or `steps` choices were made. The same seed
/// takes the same runs on every machine. Faults are taken with probability one in `fault_odds`.
[[nodiscard]] Result walk(const Bounds& bounds, std::uint64_t seed, int runs, int steps,
                          int fault_odds = 20);

/// A trace with everything left out that the violation does not need.
[[nodiscard]] std::vector<Choice> shorten(const Bounds& bounds, std::vector<Choice> trace);

/// The world after the trace; choices that cannot happen are left out.
[[nodiscard]] World replay(const Bounds& bounds, const std::vector<Choice>& trace);

/// The trace as a sequence that a person can follow, with what each choice led to.
[[nodiscard]] std::string tell(const Bounds& bounds, const std::vector<Choice>& trace);

/// Reads what tell() wrote, comments and all: the choices of its numbered lines, in order. Throws
/// std::invalid_argument naming the line that cannot happen there (other bounds, another protocol).
[[nodiscard]] std::vector<Choice> read_trace(const Bounds& bounds, const std::string& text);

/// "2 ranks, 3 steps, 1 crash: 1234567 states, 3456789 edges, 12.3 s".
[[nodiscard]] std::string summary(const Bounds& bounds, const Result& result);

}  // namespace meshstage::explorer
