// One rank's protocol where the chosen step is of this number of ranks and of another cut.
#include <string>

#include "tests/protocol/transition_support.hpp"

using namespace meshstage;
using namespace meshstage::protocol;
using namespace meshstage::protocol::test;

namespace {

constexpr ImageId kStep{1, 5};

std::shared_ptr<const Config> config(int rank, int world, bool any_world = true) {
  return make_config(rank, world, {}, {}, {}, 0, any_world);
}

Claim own_image(int rank, int world) {
  Claim claim;
  claim.at = claim.owner = rank;
  claim.id = kStep;
  claim.world_size = world;
  return claim;
}

const Failure kDiffers{ErrorKind::kStructureMismatch, 1, {}, "w", "placements differ"};

/// Rank 1 of 2, a leaf, which has its image of the chosen step; it has not compared yet.
State leaf(bool any_world = true) {
  State state = make_state(config(1, 2, any_world));
  tell(state, Formed{2});
  tell(state, SlotsVerified{{own_image(1, 2)}, kNoImage});
  hear(state, 0, AskDisk{kStep}, 2);
  tell(state, FilesVerified{});
  const auto actions = hear(state, 0, protocol::Choice{kStep, kNoImage, {}}, 2);
  REQUIRE(first<CheckStructure>(actions) != nullptr);
  return state;
}

/// The only rank of a job, whose trainer has another cut: what it answers.
std::vector<Action> differing_root(State& state) {
  state = make_state(config(0, 1));
  tell(state, Formed{2});
  tell(state, SlotsVerified{{own_image(0, 1)}, kNoImage});
  tell(state, FilesVerified{});
  return tell(state, StructureChecked{"w", "placements differ"});
}

const Publish kPublish{{kStep, 2}, false, kDiffers};

}  // namespace

TEST_CASE("a rank of another cut is ready like others, and says how its structure differs") {
  State state = leaf();
  const auto actions = tell(state, StructureChecked{"w", "placements differ"});
  REQUIRE(first<RecoverFailed>(actions) == nullptr);
  REQUIRE(sent<Ready>(actions, 0)->mismatch == kDiffers);
}

TEST_CASE("without any_world a structure that differs ends the recovery at once") {
  State state = leaf(false);
  const auto actions = tell(state, StructureChecked{"w", "placements differ"});
  REQUIRE(first<RecoverFailed>(actions)->failure == kDiffers);
  REQUIRE(sent<GiveUp>(actions, 0)->failure == kDiffers);
}

TEST_CASE("a leaf makes its image a file, and assembles once all agree; the step is the base") {
  State state = leaf();
  tell(state, StructureChecked{});  // of the same cut, but another rank is not
  auto actions = hear(state, 0, kPublish, 2);
  REQUIRE(first<PublishOld>(actions)->step == OldStep{kStep, 2});
  require_refused(state, message(0, kPublish, 2), kMalformed);
  require_refused(state, message(0, Established{kStep}, 2), kMalformed);
  actions = tell(state, OldPublished{{}, {1}});
  REQUIRE(sent<Published>(actions, 0)->written == std::vector<int>{1});
  require_refused(state, message(0, kPublish, 2), kMalformed);
  SECTION("by Established") { actions = hear(state, 0, Established{kStep}, 2); }
  SECTION("by the next step's offer, which comes before it") {
    actions = hear(state, 0, Offer{{2, 5}, kStep, {100, 10, {}}}, 2);
  }
  REQUIRE(first<RestoreTrainer>(actions) == nullptr);
  REQUIRE(first<Reassemble>(actions)->step == OldStep{kStep, 2});
  REQUIRE(first<Reassemble>(actions)->mismatch == kDiffers);
  REQUIRE(state.base == kStep);
  // The same number once more, in the new cut; the slot of the step that it is made from stays.
  actions = tell(state, StageRequested{5, {100, 10, {}}});
  REQUIRE(first<WriteOwn>(actions)->id == ImageId{2, 5});
  REQUIRE(first<WriteOwn>(actions)->slot == 1);
}

TEST_CASE("a publish of a new cut out of turn, of another step or of replicas is malformed") {
  State state = leaf();
  require_refused(state, message(0, kPublish, 2), kMalformed);  // it has not compared
  tell(state, StructureChecked{});
  require_refused(state, message(0, Publish{{kStep, 2}, true, kDiffers}, 2), kMalformed);
  require_refused(state, message(0, Publish{{{1, 4}, 2}, false, kDiffers}, 2), kMalformed);
  require_refused(state, message(0, Publish{{kStep, 3}, false, kDiffers}, 2), kMalformed);
  require_refused(state, message(0, Publish{{kStep, 2}}, 2), kMalformed);
  State other = leaf(false);
  tell(other, StructureChecked{});
  require_refused(other, message(0, kPublish, 2), kMalformed);
}

TEST_CASE("a ready with another cut is malformed where any_world is off") {
  State state = make_state(config(0, 2, false));
  tell(state, Formed{2});
  tell(state, SlotsVerified{{own_image(0, 2)}, kNoImage});
  hear(state, 1, Have{false, {own_image(1, 2)}, kNoImage}, 2);
  tell(state, FilesVerified{});
  hear(state, 1, Have{true, {}, kNoImage}, 2);
  require_refused(state, message(1, Ready{kDiffers}, 2), kMalformed);
}

TEST_CASE("the root establishes a new cut once each rank's image is a file") {
  State state;
  auto actions = differing_root(state);
  REQUIRE(first<AskStore>(actions) == nullptr);
  REQUIRE(first<PublishOld>(actions)->step == OldStep{kStep, 1});
  SECTION("then it asks the Store") {
    actions = tell(state, OldPublished{{}, {0}});
    REQUIRE(first<AskStore>(actions)->id == kStep);
    REQUIRE(first<AskStore>(actions)->note);
    actions = tell(state, StoreAnswered{kStep});
    REQUIRE(first<Reassemble>(actions)->mismatch.path == "w");
  }
  SECTION("and else gives up, with the mismatch and the reason") {
    actions = tell(state, OldPublished{"no room", {}});
    const Failure& failure = first<RecoverFailed>(actions)->failure;
    REQUIRE(failure.kind == ErrorKind::kStructureMismatch);
    REQUIRE(failure.path == "w");
    REQUIRE(failure.why.find("placements differ; it cannot be cut anew") == 0);
    REQUIRE(failure.why.find("rank 0's did not: no room") != std::string::npos);
  }
}

TEST_CASE("of several ranks whose structures differ all get that of the lowest rank") {
  State state = make_state(config(0, 2));
  tell(state, Formed{2});
  tell(state, SlotsVerified{{own_image(0, 2)}, kNoImage});
  hear(state, 1, Have{false, {own_image(1, 2)}, kNoImage}, 2);
  tell(state, FilesVerified{});
  hear(state, 1, Have{true, {}, kNoImage}, 2);
  tell(state, Fetched{1});  // the replica of rank 1, which this rank lacked
  hear(state, 1, Ready{kDiffers}, 2);
  const auto actions = tell(state, StructureChecked{"v", "shape"});
  REQUIRE(sent<Publish>(actions, 1) != nullptr);
  REQUIRE(sent<Publish>(actions, 1)->mismatch->rank == 0);
}
