// The LibTorch example is killed in each phase of a job, and its replacement again. (The others are
// killed at every point; LibTorch takes a second to load.)
#include <array>

#include "tests/examples/killed_runs.hpp"

TEST_CASE("a LibTorch trainer survives two deaths in each phase") {
  using meshstage::protocol::Point;
  examples::killed_at("torch", std::array{Point::kVoted, Point::kRestoring});
}
