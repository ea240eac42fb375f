// Each example is killed at every named point of the protocol, and its replacement again, and ends
// with the bits of a run that nobody disturbed.
#include "tests/examples/killed_runs.hpp"

namespace {

void killed_everywhere(const std::string& example) {
  examples::killed_at(example, meshstage::all_points());
}

}  // namespace

TEST_CASE("run() survives two deaths at every point") { killed_everywhere("minimal"); }

TEST_CASE("run() with an optimizer on a mesh survives two deaths at every point") {
  killed_everywhere("mesh");
}

TEST_CASE("the loop in a program's own hands survives two deaths at every point") {
  killed_everywhere("loop");
}

TEST_CASE(
    "a trainer with numbers and a random stream in its state survives two deaths at every point") {
  killed_everywhere("consumer");
}
