#pragma once
#include <cstdint>
#include <iostream>

#include "tests/support/catch.hpp"
#include "tests/support/explorer/explore.hpp"

/// What a test asks of the protocol within some bounds.
namespace meshstage::explorer {

/// No run breaks a promise, and there are more than so many states. Prints their number, and the
/// run that breaks one.
inline void require_safe(const Bounds& bounds, std::uint64_t states = 100) {
  const Result result = explore(bounds);
  std::cout << summary(bounds, result) << std::endl;
  if (!result.violation.empty()) std::cout << tell(bounds, shorten(bounds, result.trace));
  REQUIRE(result.violation == "");
  REQUIRE(result.complete);
  REQUIRE(result.states > states);
}

/// None of these random runs breaks a promise.
inline void require_safe_walks(const Bounds& bounds, std::uint64_t seed, int runs) {
  const Result result = walk(bounds, seed, runs, 100'000);
  std::cout << runs << " walks, " << summary(bounds, result) << std::endl;
  if (!result.violation.empty()) std::cout << tell(bounds, shorten(bounds, result.trace));
  REQUIRE(result.violation == "");
}

/// So many ranks, which stage so many steps.
inline Bounds ranks(int world, int steps) {
  Bounds bounds;
  bounds.world = world;
  bounds.steps = steps;
  return bounds;
}

}  // namespace meshstage::explorer
