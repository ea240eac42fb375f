// Which blocks need not travel because the receiver has them. Each rule is needed: without it a run
// seals a replica that its owner never staged; the run is printed.
#include "tests/transfer/held_blocks.hpp"

#include <iostream>

#include "tests/support/catch.hpp"

using namespace meshstage::held_blocks;
using meshstage::explorer::go_through;
using meshstage::explorer::tell;

namespace {

void require_needed(bool Rules::* rule) {
  Model model;
  model.rules.*rule = false;
  const auto without = go_through(model);
  std::cout << tell(without);
  REQUIRE(without.violation != "");
}

}  // namespace

TEST_CASE("what a holder says that it holds is there, whatever fails and dies on the way") {
  const auto result = go_through(Model());
  std::cout << result.states << " states" << std::endl;
  if (!result.violation.empty()) std::cout << tell(result);
  REQUIRE(result.violation == "");
  REQUIRE(result.complete);
  REQUIRE(result.seen.size() == 1);
}
TEST_CASE("without the holder's word a replica is sealed that was never there") {
  require_needed(&Rules::told);
}
TEST_CASE("without a table's end when its slot is begun a replica is sealed that is torn") {
  require_needed(&Rules::ends_when_begun);
}
TEST_CASE("without a table's end with its process a replica is sealed that is torn") {
  require_needed(&Rules::ends_with_process);
}
