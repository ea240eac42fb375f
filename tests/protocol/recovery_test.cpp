#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/protocol/transition.hpp>
#include <random>
#include <string>

#include "tests/protocol/transition_support.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/explorer/explore.hpp"

// What one rank answers to one event of a recovery, and what it must not be talked into.

using namespace meshstage;
using namespace meshstage::protocol;
using namespace meshstage::protocol::test;

namespace {

/// Rank 1 of 4, which waits for generation 2's choice. Its holder, ward and child is rank 3, its
/// parent rank 0.
State waiting_for_choice() {
  State state = make_state(make_config(1, 4));
  tell(state, Formed{2});
  tell(state, SlotsVerified{});
  hear(state, 3, Have{}, 2);
  hear(state, 0, AskDisk{}, 2);
  tell(state, FilesVerified{});
  hear(state, 3, Have{true, {}, kNoImage}, 2);
  return state;
}

/// The claims of one rank to a file of each rank of that step.
std::vector<Claim> files_of(const OldStep& step) {
  std::vector<Claim> claims;
  for (int owner = 0; owner < step.world_size; ++owner) {
    claims.push_back({0, owner, Place::kHeldFile, 0, step.world_size, step.id, {}, {}, {}});
  }
  return claims;
}

}  // namespace

TEST_CASE("a rank that reads is waited for, and names itself when its disk gives nothing") {
  State state = make_state(make_config(1, 4));
  tell(state, Formed{2});
  if (GENERATE(false, true)) {  // it reads files, or slots
    tell(state, SlotsVerified{});
    hear(state, 3, Have{}, 2);
    hear(state, 0, AskDisk{}, 2);
  }
  auto out = hear(state, 0, Overdue{kNoImage, 1}, 2);
  CHECK(sent<Overdue>(out, 3) != nullptr);
  CHECK(first<NoteDeath>(out) == nullptr);
  out = tell(state, ReadStuck{"has read nothing of x"});
  REQUIRE(first<NoteDeath>(out) != nullptr);
  CHECK(first<NoteDeath>(out)->rank == 1);
  for (const int neighbour : {0, 3}) {
    const auto* death = sent<Death>(out, neighbour);
    REQUIRE(death != nullptr);
    CHECK(death->kind == ErrorKind::kPeerSilent);
    CHECK(death->why == "has read nothing of x");
  }
  CHECK(first<ReportLost>(out)->rank == -1);  // it lives
  require_refused(state, ReadStuck{"again"}, kStale);
}

TEST_CASE("more claims than a message has room for: the newest are passed on") {
  // Rank 1 of 4 finds 130,000 files that the job has left: of each step those of all four ranks.
  constexpr std::uint64_t kImages = 130'000;
  State state = make_state(make_config(1, 4));
  tell(state, Formed{2});
  tell(state, SlotsVerified{});
  hear(state, 3, Have{}, 2);
  hear(state, 0, AskDisk{}, 2);
  FilesVerified files;
  for (std::uint64_t i = 0; i < kImages; ++i) {
    Claim claim;
    claim.at = 1;
    claim.owner = static_cast<int>(i % 4);
    claim.place = claim.owner == 1 ? Place::kOwnFile : Place::kHeldFile;
    claim.world_size = 4;
    claim.id = {1, 1 + i / 4};
    claim.sizes = {1ULL << 30U, 4096, {1, 2}};
    files.claims.push_back(claim);
  }
  tell(state, files);
  const auto out = hear(state, 3, Have{true, {}, kNoImage}, 2);
  const auto* have = sent<Have>(out, 0);
  REQUIRE(have != nullptr);
  const auto message = with_digest(encode(WireContext{7, 4}, 1, Message{2, *have}));
  CHECK(message.size() <= ControlLinks::kMaxMessageBytes);
  CHECK(message.size() > kMostClaimBytes / 10 * 9);
  // Each step is there with all four claims, or left out and said to be.
  CHECK(have->claims.size() % 4 == 0);
  CHECK(have->claims.back().id == ImageId{1, kImages / 4});
  CHECK(have->beyond == ImageId{1, (kImages - have->claims.size()) / 4});

  // The root asks for these: the rank passes on what it verified of them, and that is all.
  const ImageId up_to = have->beyond;
  require_refused(state, test::message(0, AskDisk{}, 2), kMalformed);
  require_refused(state, test::message(3, AskDisk{kNoImage, up_to}, 2), kMalformed);
  const auto asked = hear(state, 0, AskDisk{kNoImage, up_to}, 2);
  REQUIRE(sent<AskDisk>(asked, 3) != nullptr);
  CHECK(*sent<AskDisk>(asked, 3) == AskDisk{kNoImage, up_to});
  REQUIRE(first<VerifyDisk>(asked) != nullptr);
  CHECK(first<VerifyDisk>(asked)->up_to == up_to);
  std::erase_if(files.claims, [&](const Claim& claim) { return claim.id > up_to; });
  tell(state, files);
  const auto rest = hear(state, 3, Have{true, {}, kNoImage}, 2);
  REQUIRE(sent<Have>(rest, 0) != nullptr);
  CHECK(sent<Have>(rest, 0)->claims == files.claims);
  CHECK(sent<Have>(rest, 0)->beyond == kNoImage);
}

TEST_CASE("a choice that sends an image to a rank that does not keep it is refused") {
  State state = waiting_for_choice();
  Claim claim;
  claim.at = 1;
  claim.owner = 1;
  claim.id = {1, 5};
  const auto choose = [&](int at, int owner, int to) {
    claim.at = at;
    claim.owner = owner;
    return message(0, protocol::Choice{claim.id, kNoImage, {{claim, to}}}, 2);
  };
  require_refused(state, choose(1, 1, 2), kMalformed);  // this rank is to send to a stranger
  require_refused(state, choose(2, 0, 1), kMalformed);  // to receive what it does not hold
  require_refused(state, choose(1, 9, 1), kMalformed);  // of nobody
  require_refused(state, choose(1, -1, 1), kMalformed);
  const auto actions = tell(state, choose(1, 1, 3));
  REQUIRE(first<Serve>(actions) != nullptr);
  REQUIRE(first<Connect>(actions) == nullptr);
}

TEST_CASE("ranks that are not linked connect for a choice, exchange its images and disconnect") {
  State state = waiting_for_choice();
  Claim here;  // in a stray vault that this rank took: rank 2 lacks it
  here.at = 1;
  here.owner = 2;
  here.place = Place::kStray;
  here.vault = 2;
  here.id = {1, 5};
  Claim there = here;  // in one that rank 2 took
  there.at = 2;
  there.owner = there.vault = 1;
  const protocol::Choice choice{here.id, kNoImage, {{there, 1}, {here, 2}}};
  auto actions = hear(state, 0, choice, 2);
  REQUIRE(first<Connect>(actions) != nullptr);
  REQUIRE(first<Connect>(actions)->peers == std::vector<int>{2});
  REQUIRE(first<Fetch>(actions) == nullptr);
  REQUIRE(first<Serve>(actions) == nullptr);

  SECTION("until Established") {
    actions = tell(state, Connected{});
    REQUIRE(first<Fetch>(actions)->source == there);
    REQUIRE(first<Serve>(actions)->source == here);
    require_refused(state, Connected{}, kStale);
    tell(state, Fetched{1});
    hear(state, 3, Ready{}, 2);
    tell(state, StructureChecked{});
    actions = hear(state, 0, Established{here.id}, 2);
    REQUIRE(first<Disconnect>(actions) != nullptr);
    REQUIRE(first<RestoreTrainer>(actions) != nullptr);
    require_refused(state, Connected{}, kStale);
  }
  SECTION("all that is ready waits for the connection") {
    hear(state, 3, Ready{}, 2);
    REQUIRE(state.recovery.phase == Recovery::Phase::kFetch);
  }
  SECTION("one that gives up says so on the new connection, too") {
    tell(state, Connected{});
    actions = tell(state, FetchFailed{1, ErrorKind::kIo, "no"});
    REQUIRE(sent<GiveUp>(actions, 2) != nullptr);
  }
  SECTION("but not before there is one") {
    actions = tell(state, FetchFailed{1, ErrorKind::kIo, "no"});
    REQUIRE(sent<GiveUp>(actions, 0) != nullptr);
    REQUIRE(sent<GiveUp>(actions, 2) == nullptr);
    require_refused(state, Connected{}, kStale);
  }
  SECTION("what the other one gives up for is this one's error, too") {
    tell(state, Connected{});
    REQUIRE(first<RecoverFailed>(hear(state, 2, GiveUp{}, 2)) != nullptr);
  }
}

TEST_CASE("a world of another size is refused at the root, both sizes named") {
  State state = make_state(make_config(0, 1));
  tell(state, Formed{3});
  Claim claim;
  claim.world_size = 4;
  claim.id = {2, 7};
  tell(state, SlotsVerified{{claim}, kNoImage});
  const auto out = tell(state, FilesVerified{});
  const RecoverFailed* failed = first<RecoverFailed>(out);
  REQUIRE(failed != nullptr);
  REQUIRE(failed->failure.kind == ErrorKind::kStructureMismatch);
  REQUIRE(failed->failure.why.find("4 ranks") != std::string::npos);
  REQUIRE(failed->failure.why.find("has 1") != std::string::npos);
}

TEST_CASE(
    "with consent, a step of another number of ranks is begun with unless this one has newer") {
  State state = make_state(make_config(0, 1, {}, {}, {}, 0, true));
  Claim old;  // in this rank's vault, of four ranks
  old.world_size = 4;
  old.id = {2, 9};
  old.slot = 1;
  Claim own;
  own.world_size = 1;
  const OldStep on_disk{{2, 7}, 4};
  tell(state, Formed{5});
  SECTION("nothing of this number") {
    tell(state, SlotsVerified{{old}, {1, 0}});
    auto out = tell(state, FilesVerified{files_of(on_disk), {2, 7}, {}, {on_disk}});
    REQUIRE(first<LeftBehind>(out)->step == OldStep{{2, 9}, 4});
    REQUIRE(first<LeftBehind>(out)->taken == ImageId{2, 7});
    out = tell(state, StoreAnswered{});
    REQUIRE(first<RecoveredNothing>(out)->old == on_disk);
    REQUIRE(first<WriteOwn>(tell(state, StageRequested{7, {}}))->id == ImageId{5, 7});
  }
  SECTION("an older step of this number") {
    own.id = {1, 30};
    tell(state, SlotsVerified{{own}, kNoImage});
    tell(state, FilesVerified{files_of(on_disk), kNoImage, {}, {on_disk}});
    const auto out = tell(state, StoreAnswered{});
    REQUIRE(first<RestoreTrainer>(out) == nullptr);
    REQUIRE(first<RecoveredNothing>(out)->old == on_disk);
  }
  SECTION("a newer step of this number") {
    own.id = {3, 1};
    tell(state, SlotsVerified{{own, old}, kNoImage});
    auto out = tell(state, FilesVerified{files_of(on_disk), kNoImage, {}, {on_disk}});
    REQUIRE(first<LeftBehind>(out) == nullptr);
    REQUIRE(first<CheckStructure>(out)->slot == 0);
    tell(state, StructureChecked{});
    out = tell(state, StoreAnswered{{3, 1}});
    REQUIRE(first<RestoreTrainer>(out)->id == ImageId{3, 1});
  }
  SECTION("no file of every rank") {
    tell(state, SlotsVerified{{old}, {1, 0}});
    const auto out = tell(state, FilesVerified{});
    REQUIRE(first<RecoverFailed>(out)->failure.kind == ErrorKind::kStructureMismatch);
    const std::string& why = first<RecoverFailed>(out)->failure.why;
    REQUIRE(why.find("made by 4 ranks, this job has 1") != std::string::npos);
    REQUIRE(why.find("not every rank's image of it is in reach") != std::string::npos);
  }
}

TEST_CASE(
    "an old step on disk is proven by the ranks' claims, and by the root where one is missing") {
  State state = make_state(make_config(0, 1, {}, {}, {}, 0, true));
  const OldStep older{{2, 5}, 2}, newest{{2, 7}, 2};
  std::vector<Claim> claims = files_of(older);
  const auto verified = [&] {
    tell(state, Formed{5});
    tell(state, SlotsVerified{{}, kNoImage});
    return tell(state, FilesVerified{claims, {2, 7}, {}, {older, newest}});
  };
  claims.push_back(files_of(newest)[0]);
  Claim other = files_of(newest)[1];
  SECTION("each file is claimed") {
    claims.push_back(other);
    REQUIRE(first<FindOld>(verified()) == nullptr);
    REQUIRE(first<RecoveredNothing>(tell(state, StoreAnswered{}))->old == newest);
  }
  SECTION("the image of rank 1 is not") {
    const OldStep proven = GENERATE(OldStep{}, OldStep{{2, 5}, 2}, OldStep{{2, 7}, 2});
    REQUIRE(first<FindOld>(verified())->prove);
    const auto out = tell(state, OldFound{{older, newest}, proven});
    REQUIRE(first<FindOld>(out) == nullptr);  // once
    REQUIRE(first<RecoveredNothing>(tell(state, StoreAnswered{}))->old ==
            (proven.id.exists() ? proven : older));
  }
  SECTION("nor is it one of that number of ranks") {
    other.world_size = 3;
    claims.push_back(other);
    REQUIRE(first<FindOld>(verified())->prove);
  }
}

TEST_CASE(
    "an old step that lies in memory whole becomes files before the choice, if there is room") {
  State state = make_state(make_config(0, 1, {}, {}, {}, 0, true));
  Claim mine, other;  // of two ranks: both in this one's reach
  mine.world_size = other.world_size = 2;
  mine.id = other.id = {2, 9};
  mine.sizes.image_bytes = other.sizes.image_bytes = 100;
  other.owner = 1;
  other.place = Place::kStray;
  other.vault = 1;
  const OldStep on_disk{{2, 7}, 2}, newest{{2, 9}, 2};
  const auto files = files_of(on_disk);
  const auto verified = [&](std::uint64_t room) {
    tell(state, Formed{5});
    tell(state, SlotsVerified{{mine}, kNoImage});
    return tell(state, FilesVerified{{other, files[0], files[1]}, {2, 7}, {}, {on_disk}, room});
  };
  SECTION("the own images suffice") {
    auto out = verified(200);
    REQUIRE(first<PublishOld>(out)->step == newest);
    REQUIRE(!first<PublishOld>(out)->replicas);
    out = tell(state, OldPublished{{}, {0, 1}});
    REQUIRE(!first<FindOld>(out)->prove);
    out = tell(state, OldFound{{on_disk, newest}});
    REQUIRE(first<LeftBehind>(out) == nullptr);
    REQUIRE(first<RecoveredNothing>(tell(state, StoreAnswered{}))->old == newest);
  }
  SECTION("then the replicas, and if they do not help, the older step") {
    verified(200);
    tell(state, OldPublished{"rank 1's is rotten", {0}});
    REQUIRE(first<PublishOld>(tell(state, OldFound{{on_disk}}))->replicas);
    tell(state, OldPublished{"nor is the replica sound"});
    const auto out = tell(state, OldFound{{on_disk}});
    REQUIRE(first<LeftBehind>(out)->step == newest);
    REQUIRE(first<LeftBehind>(out)->why == "nor is the replica sound");
    REQUIRE(first<RecoveredNothing>(tell(state, StoreAnswered{}))->old == on_disk);
  }
  SECTION("no room") {
    const auto out = verified(199);
    REQUIRE(first<PublishOld>(out) == nullptr);
    REQUIRE(first<LeftBehind>(out)->why.find("200 bytes") != std::string::npos);
    REQUIRE(first<RecoveredNothing>(tell(state, StoreAnswered{}))->old == on_disk);
  }
  SECTION("a file needs no room again") {
    mine.place = Place::kOwnFile;
    tell(state, Formed{5});
    tell(state, SlotsVerified{});
    REQUIRE(first<PublishOld>(tell(state, FilesVerified{{mine, other}, {2, 7}, {}, {}, 100})) !=
            nullptr);
  }
  SECTION("this number has a step that is older, and whose number is as large") {
    Claim own;
    own.world_size = 1;
    own.id = {1, 9};
    tell(state, Formed{5});
    tell(state, SlotsVerified{{own}, kNoImage});
    mine.place = Place::kStray;
    mine.vault = 0;
    const auto out = tell(state, FilesVerified{{mine, other}, kNoImage, {}, {}, 1000});
    REQUIRE(first<PublishOld>(out) == nullptr);
    REQUIRE(first<LeftBehind>(out)->taken == ImageId{1, 9});
  }
}

TEST_CASE("without consent another number of ranks is refused, whatever is on disk") {
  State state = make_state(make_config(0, 1));
  Claim old;
  old.world_size = 4;
  old.id = {2, 9};
  tell(state, Formed{5});
  tell(state, SlotsVerified{{old}, {1, 0}});
  const auto out = tell(state, FilesVerified{files_of({{2, 9}, 4}), kNoImage, {}, {{{2, 9}, 4}}});
  REQUIRE(first<RecoverFailed>(out)->failure.why.find("any_world") != std::string::npos);
}

TEST_CASE("nothing is recovered only where nothing was ever complete") {
  State state = make_state(make_config(0, 1));
  tell(state, Formed{2});
  SECTION("a note in the Store") {
    tell(state, SlotsVerified{{}, {1, 5}});
    const auto out = tell(state, FilesVerified{});
    REQUIRE(first<RecoverFailed>(out)->failure.kind == ErrorKind::kUnrecoverable);
    REQUIRE(first<RecoverFailed>(out)->failure.ranks == std::vector<int>{0});
  }
  SECTION("a file that cannot be read") {
    tell(state, SlotsVerified{});
    const auto out = tell(state, FilesVerified{{}, {1, 5}});
    REQUIRE(first<RecoverFailed>(out)->failure.kind == ErrorKind::kUnrecoverable);
  }
  REQUIRE(state.mode == Mode::kBroken);
}

TEST_CASE("whoever gives a recovery up tells every peer on its own link, partners too") {
  State state = make_state(make_config(1, 3));
  REQUIRE(state.config->peers == std::vector<int>{0, 2});  // 0 is the parent, 2 only the holder
  Claim claim;
  claim.at = claim.owner = 1;
  claim.world_size = 3;
  claim.id = {1, 7};
  tell(state, Formed{2});
  tell(state, SlotsVerified{{claim}, kNoImage});
  hear(state, 0, AskDisk{}, 2);
  tell(state, FilesVerified{});
  auto out = hear(state, 0, protocol::Choice{{1, 7}, kNoImage, {}}, 2);
  REQUIRE(first<CheckStructure>(out)->slot == 0);
  SECTION("its own structure differs") {
    out = tell(state, StructureChecked{"model.w", "F32[2] against F32[3]"});
    REQUIRE(sent<GiveUp>(out, 0)->failure.path == "model.w");
    REQUIRE(sent<GiveUp>(out, 2)->failure.path == "model.w");
  }
  SECTION("it hears of it, and passes it on") {
    Failure failure;
    failure.path = "model.w";
    out = hear(state, 2, GiveUp{failure}, 2);
    REQUIRE(sent<GiveUp>(out, 0)->failure.path == "model.w");
    REQUIRE(sent<GiveUp>(out, 2) == nullptr);
  }
  REQUIRE(first<RecoverFailed>(out)->failure.path == "model.w");
  REQUIRE(first<RestoreTrainer>(out) == nullptr);
  REQUIRE(state.mode == Mode::kBroken);
}

TEST_CASE("a mismatch at one rank is the same error at all, and no trainer is written") {
  explorer::Bounds bounds;
  bounds.world = 3;
  bounds.steps = 1;
  bounds.crashes = 1;
  bounds.mismatches = 1;
  std::mt19937_64 random(5);
  explorer::World world(std::make_shared<const explorer::Bounds>(bounds));
  bool crashed = false, mismatched = false;
  for (int i = 0; i < 2000; ++i) {
    auto choices = world.choices();
    const auto take = [&](explorer::Choice::Kind kind) {
      for (const auto& choice : choices) {
        if (choice.kind == kind) return world.apply(choice);
      }
      return false;
    };
    if (!crashed && world.agreed().exists()) {
      crashed = take(explorer::Choice::Kind::kCrash);
      continue;
    }
    if (crashed && !mismatched && take(explorer::Choice::Kind::kMismatch)) {
      mismatched = true;
      continue;
    }
    std::erase_if(choices, [](const auto& choice) { return explorer::is_fault(choice); });
    if (choices.empty()) break;
    world.apply(choices[random() % choices.size()]);
    REQUIRE(world.violation() == "");
  }
  REQUIRE(mismatched);
  for (int rank = 0; rank < 3; ++rank) {
    const auto& failure = world.node(rank).failure;
    REQUIRE(failure.has_value());
    REQUIRE(failure->kind == ErrorKind::kStructureMismatch);
    REQUIRE(failure->path == "w");
    REQUIRE(failure == world.node(0).failure);
  }
  REQUIRE(world.restored().size() == 3);  // by the attempt after it, with the right structure
}
