#include <meshstage/core/replicate/hands.hpp>

#include <algorithm>

#include "tests/support/catch.hpp"

using namespace meshstage;
using replicate::hands_for;

TEST_CASE("a rank's threads are what the user says, or its share of the processors") {
  CheckpointerOptions options;
  options.environment.emplace();
  const unsigned processors = available_processors().count();
  for (const int ranks : {1, 2, 3, 1000}) {
    INFO(ranks << " ranks on this host");
    options.environment->local_world_size = ranks;
    options.copy_threads = 0;
    const unsigned share = processors / static_cast<unsigned>(ranks);
    // In a recovery the trainer waits; beside it half of the share is the trainer's.
    CHECK(hands_for(options, Beside::kNothing) == std::clamp(share, 1U, kMostCopyThreads));
    CHECK(hands_for(options, Beside::kTrainer) == std::clamp(share / 2, 1U, kMostCopyThreads));
    options.copy_threads = 3;
    CHECK(hands_for(options, Beside::kNothing) == 3);
    CHECK(hands_for(options, Beside::kTrainer) == 3);
  }
}
