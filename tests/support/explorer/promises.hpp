#pragma once
#include <iostream>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/explorer/breadth_first.hpp"

/// What a test asks of a small model (breadth_first.hpp).
namespace meshstage::explorer {

/// No run breaks a promise. Prints the number of states, and the run that breaks one.
template <class Model>
Exploration require_safe(const Model& model) {
  Exploration result = go_through(model);
  std::cout << result.states << " states" << std::endl;
  if (!result.violation.empty()) std::cout << tell(result);
  REQUIRE(result.violation == "");
  REQUIRE(result.complete);
  return result;
}

/// Some run breaks a promise, which is printed: the model lacks a rule that is needed.
template <class Model>
void require_broken(const Model& model) {
  const Exploration without = go_through(model);
  std::cout << tell(without);
  REQUIRE(without.violation != "");
}

}  // namespace meshstage::explorer
