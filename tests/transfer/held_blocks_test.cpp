// Which blocks need not travel because the receiver has them. Each rule is needed: without it a run
// seals a replica that its owner never staged; the run is printed.
#include "tests/transfer/held_blocks.hpp"

#include "tests/support/explorer/promises.hpp"

using namespace meshstage::held_blocks;
namespace explorer = meshstage::explorer;

namespace {

void require_needed(bool Rules::* rule) {
  Model model;
  model.rules.*rule = false;
  explorer::require_broken(model);
}

}  // namespace

TEST_CASE("what a holder says that it holds is there, whatever fails and dies on the way") {
  REQUIRE(explorer::require_safe(Model()).seen.size() == 1);
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
