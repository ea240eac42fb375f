#include <algorithm>
#include <memory>
#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/protocol/transition.hpp>
#include <string>
#include <vector>

#include "tests/protocol/transition_support.hpp"
#include "tests/support/catch.hpp"

// How the root asks for claims that did not fit the ranks' messages, until a step is covered; and
// what a rank between the root and others leaves out, and answers.

using namespace meshstage;
using namespace meshstage::protocol;
using namespace meshstage::protocol::test;

namespace {

Claim claim_to(int at, int owner, std::uint64_t step, Place place, int world = 2) {
  Claim claim{at, owner, place, 0, world, {1, step}, {}, {}, {}};
  if (place == Place::kStray) claim.vault = owner;
  return claim;
}
Claim file(int at, int owner, std::uint64_t step, int world = 2) {
  return claim_to(at, owner, step, at == owner ? Place::kOwnFile : Place::kHeldFile, world);
}
Claim slot(int at, int owner, std::uint64_t step) {
  return claim_to(at, owner, step, at == owner ? Place::kOwnSlot : Place::kHeldSlot);
}

/// Rank 0 of 2, which has asked for files.
class Root {
 public:
  explicit Root(std::vector<Claim> own_slots = {}, const Have& slots = {}, bool any_world = false)
      : state(make_state(make_config(0, 2, {}, {}, {}, 0, any_world))) {
    tell(state, Formed{2});
    tell(state, SlotsVerified{std::move(own_slots), kNoImage});
    const auto out = hear(state, 1, slots, 2);
    REQUIRE(sent<AskDisk>(out, 1) != nullptr);
    asked = *sent<AskDisk>(out, 1);
  }
  /// This rank's claims, then rank 1's: of the files, or of a part of all that was verified.
  std::vector<Action> claims(std::vector<Claim> own, std::vector<Claim> others, ImageId beyond,
                             std::vector<OldStep> named = {}) {
    FilesVerified verified{std::move(own), {1, 9}};
    verified.named = std::move(named);
    tell(state, verified);
    return hear(state, 1, Have{true, std::move(others), {1, 9}, {}, beyond}, 2);
  }

  State state;
  AskDisk asked{};
};

/// That part was asked for, of rank 1 and of this rank's own disk.
void require_asked(const std::vector<Action>& out, const AskDisk& ask) {
  REQUIRE(sent<AskDisk>(out, 1) != nullptr);
  CHECK(*sent<AskDisk>(out, 1) == ask);
  REQUIRE(first<VerifyDisk>(out) != nullptr);
  CHECK(first<VerifyDisk>(out)->newer_than == ask.newer_than);
  CHECK(first<VerifyDisk>(out)->up_to == ask.up_to);
}

ImageId chosen(const std::vector<Action>& out) {
  const auto* choice = sent<protocol::Choice>(out, 1);
  REQUIRE(choice != nullptr);
  return choice->id;
}

}  // namespace

TEST_CASE("the root asks for claims left out, part by part, until a step is covered") {
  Root root;
  // Of steps 9 and 8 there is rank 1's image alone, of 4 and 3 both ranks' images.
  auto out = root.claims({file(0, 0, 4), file(0, 0, 3)}, {file(1, 1, 9)}, {1, 8});
  require_asked(out, {kNoImage, {1, 8}});
  out = root.claims({file(0, 0, 4), file(0, 0, 3)}, {file(1, 1, 8)}, {1, 4});
  require_asked(out, {kNoImage, {1, 4}});
  out = root.claims({file(0, 0, 4), file(0, 0, 3)}, {file(1, 1, 4)}, {1, 3});
  CHECK(chosen(out) == ImageId{1, 4});
  // What was claimed twice travels once.
  CHECK(sent<protocol::Choice>(out, 1)->transfers.size() == 4);
}

TEST_CASE("a step of which one image was left out in memory and the other on disk is found") {
  Root root({slot(0, 0, 7)}, Have{false, {slot(1, 1, 9)}, kNoImage, {}, {1, 8}});
  CHECK(root.asked == AskDisk{});
  auto out = root.claims({}, {}, kNoImage);
  require_asked(out, {kNoImage, {1, 8}});
  SECTION("rank 1 has a file of it") {
    out = root.claims({slot(0, 0, 7)}, {slot(1, 1, 8), file(1, 1, 7)}, kNoImage);
    CHECK(chosen(out) == ImageId{1, 7});
  }
  SECTION("nobody has it: the ranks without an image are named") {
    out = root.claims({slot(0, 0, 7)}, {slot(1, 1, 8)}, kNoImage);
    REQUIRE(first<RecoverFailed>(out) != nullptr);
    const Failure& failure = first<RecoverFailed>(out)->failure;
    CHECK(failure.kind == ErrorKind::kUnrecoverable);
    CHECK(failure.ranks == std::vector<int>{0});  // of step 9, the newest that one rank lacks
  }
}

TEST_CASE("only what is newer than the step that slots cover is asked for") {
  Root root({slot(0, 0, 5)}, Have{false, {slot(1, 1, 5)}, kNoImage});
  CHECK(root.asked == AskDisk{{1, 5}, kNoImage});
  auto out = root.claims({}, {file(1, 1, 9)}, {1, 8});
  require_asked(out, {{1, 5}, {1, 8}});
  SECTION("a step of that part is newer") {
    out = root.claims({file(0, 0, 6)}, {file(1, 1, 6)}, kNoImage);
    CHECK(chosen(out) == ImageId{1, 6});
  }
  SECTION("none is: the slots' step is taken") {
    out = root.claims({}, {file(1, 1, 6)}, kNoImage);
    CHECK(chosen(out) == ImageId{1, 5});
    CHECK(sent<protocol::Choice>(out, 1)->transfers.size() == 2);  // the replicas
  }
}

TEST_CASE("a step whose claims do not fit a message ends the recovery: nothing is asked twice") {
  Root root;
  auto out = root.claims({file(0, 0, 4)}, {}, {1, 9});
  require_asked(out, {kNoImage, {1, 9}});
  const ImageId beyond = GENERATE(ImageId{1, 9}, ImageId{2, 3});
  out = root.claims({file(0, 0, 4)}, {}, beyond);
  REQUIRE(first<RecoverFailed>(out) != nullptr);
  const Failure& failure = first<RecoverFailed>(out)->failure;
  CHECK(failure.kind == ErrorKind::kInvalidState);
  CHECK(failure.why.find("no step newer than " + to_string(beyond)) == 0);
  CHECK(failure.why.find("than fit a message") != std::string::npos);
  CHECK(sent<GiveUp>(out, 1) != nullptr);
}

TEST_CASE("what a borrowing replica needs was left out with it, and comes with it") {
  State state = make_state(make_config(0, 2, {}, {}, {{1}, {}}));
  tell(state, Formed{2});
  tell(state, SlotsVerified{});
  Claim replica = slot(1, 0, 7), lender = slot(1, 1, 7);
  replica.borrowed = {{1, {3, 4}}};
  replica.sizes.borrowed_bytes = 1;
  lender.lent = {{0, {3, 4}}};
  hear(state, 1, Have{false, {slot(1, 1, 9)}, kNoImage, {}, {1, 7}}, 2);
  tell(state, FilesVerified{});
  auto out = hear(state, 1, Have{true, {}, kNoImage}, 2);
  require_asked(out, {kNoImage, {1, 7}});
  tell(state, FilesVerified{});
  out = hear(state, 1, Have{true, {replica, lender}, kNoImage}, 2);
  CHECK(chosen(out) == ImageId{1, 7});
}

TEST_CASE("an old job's files count, too, whose claims were left out") {
  const OldStep old{{1, 6}, 3};
  Root root({}, {}, true);
  auto out = root.claims({file(0, 0, 6, 3)}, {file(1, 1, 9, 3)}, {1, 7}, {old});
  REQUIRE(first<FindOld>(out) == nullptr);  // the root need not prove them alone
  require_asked(out, {kNoImage, {1, 7}});
  SECTION("all are proven") {
    out = root.claims({file(0, 0, 6, 3)}, {file(1, 1, 6, 3), file(1, 2, 6, 3)}, kNoImage);
    REQUIRE(first<FindOld>(out) == nullptr);
    CHECK(root.state.recovery.old == old);
    CHECK(chosen(out) == kNoImage);
  }
  SECTION("one is not") {
    out = root.claims({file(0, 0, 6, 3)}, {file(1, 1, 6, 3)}, kNoImage);
    REQUIRE(first<FindOld>(out) != nullptr);
    CHECK(first<FindOld>(out)->prove);
    tell(root.state, OldFound{{old}, old});
    CHECK(root.state.recovery.old == old);
  }
}

TEST_CASE("the root proves an old step that was claimed in part, and then asks for older ones") {
  const OldStep older{{1, 6}, 3}, newer{{1, 9}, 3};
  Root root({}, {}, true);
  auto out = root.claims({file(0, 0, 6, 3)}, {file(1, 1, 9, 3)}, {1, 7}, {older, newer});
  REQUIRE(first<FindOld>(out) != nullptr);
  out = tell(root.state, OldFound{{older}, {}});  // a file of the newer one is gone by now
  require_asked(out, {kNoImage, {1, 7}});
  out = root.claims({file(0, 0, 6, 3)}, {file(1, 1, 6, 3), file(1, 2, 6, 3)}, kNoImage,
                    {older, newer});
  CHECK(root.state.recovery.old == older);
  CHECK(root.state.recovery.named.empty());
  CHECK(chosen(out) == kNoImage);
}

TEST_CASE("an old job's step in memory becomes files, though its claims were left out first") {
  const OldStep old{{1, 6}, 3};
  Root root({}, {}, true);
  const auto stray = [](int at, int owner) { return claim_to(at, owner, 6, Place::kStray, 3); };
  auto out = root.claims({stray(0, 0)}, {file(1, 1, 9, 3)}, {1, 7});
  REQUIRE(first<PublishOld>(out) == nullptr);
  require_asked(out, {kNoImage, {1, 7}});
  out = root.claims({stray(0, 0)}, {stray(1, 1), stray(1, 2)}, kNoImage);
  REQUIRE(first<PublishOld>(out) != nullptr);
  CHECK(first<PublishOld>(out)->step == old);
}

namespace {

constexpr int kBetween = 7;  // ranks of a job in which rank 1's parent is 0, its children 3 and 4

/// Rank 1 of kBetween, whose messages have room for so many claims, in generation 2.
State between(std::size_t room) {
  auto config = std::make_shared<Config>(*make_config(1, kBetween));
  config->most_claim_bytes = room * encoded_bytes(file(1, 1, 1, kBetween));
  State state = make_state(std::move(config));
  tell(state, Formed{2});
  return state;
}

/// Claims of one rank to its own images of those steps: its files, or what it has in memory.
std::vector<Claim> own_of(int rank, bool disk, const std::vector<std::uint64_t>& steps) {
  std::vector<Claim> claims;
  for (const std::uint64_t step : steps) {
    claims.push_back(
        claim_to(rank, rank, step, disk ? Place::kOwnFile : Place::kOwnSlot, kBetween));
  }
  return claims;
}

Have have_of(bool disk, std::vector<Claim> claims, ImageId beyond = kNoImage,
             ImageId evidence = kNoImage) {
  return {disk, std::move(claims), evidence, {}, beyond};
}

/// What rank 1 tells its parent, once it and its children have these claims.
Have passed_on(State& state, std::vector<Claim> own, const Have& third, const Have& fourth) {
  auto out = third.disk ? tell(state, FilesVerified{std::move(own), {1, 9}})
                        : tell(state, SlotsVerified{std::move(own), {1, 9}});
  CHECK(sent<Have>(out, 0) == nullptr);
  out = hear(state, 4, fourth, 2);
  CHECK(sent<Have>(out, 0) == nullptr);
  out = hear(state, 3, third, 2);
  const Have* have = sent<Have>(out, 0);
  REQUIRE(have != nullptr);
  CHECK(have->disk == third.disk);
  return *have;
}

/// They are there, in whatever order, and no others.
void require_claims(std::vector<Claim> claims, std::vector<Claim> expected) {
  const auto order = [](const Claim& a, const Claim& b) {
    return std::pair(a.id, a.at) < std::pair(b.id, b.at);
  };
  std::sort(claims.begin(), claims.end(), order);
  std::sort(expected.begin(), expected.end(), order);
  CHECK(claims == expected);
}

std::vector<Claim> together(std::vector<Claim> a, const std::vector<Claim>& b,
                            const std::vector<Claim>& c) {
  a.insert(a.end(), b.begin(), b.end());
  a.insert(a.end(), c.begin(), c.end());
  return a;
}

}  // namespace

TEST_CASE("a rank between others passes on what fits, the oldest steps left out as a whole") {
  const bool disk = GENERATE(false, true);
  State state = between(7);
  if (disk) {
    tell(state, SlotsVerified{});
    for (const int child : {3, 4}) hear(state, child, Have{}, 2);
    hear(state, 0, AskDisk{}, 2);
  }
  const auto claims = [&](int rank, const std::vector<std::uint64_t>& steps) {
    return own_of(rank, disk, steps);
  };
  SECTION("one of the two claims to step 7 would fit, and the one to step 6 would") {
    const Have have = passed_on(state, claims(1, {6, 7, 8, 9}),
                                have_of(disk, claims(3, {8, 9}), kNoImage, {1, 10}),
                                have_of(disk, claims(4, {9, 8, 7})));
    require_claims(have.claims, together(claims(1, {8, 9}), claims(3, {8, 9}), claims(4, {8, 9})));
    CHECK(have.beyond == ImageId{1, 7});
    CHECK(have.evidence == ImageId{1, 10});
  }
  SECTION("all fit") {
    const Have have = passed_on(state, claims(1, {7, 8, 9}), have_of(disk, claims(3, {8, 9})),
                                have_of(disk, claims(4, {9, 8})));
    CHECK(have.claims.size() == 7);
    CHECK(have.beyond == kNoImage);
  }
  SECTION("a child left out newer ones") {
    const Have have =
        passed_on(state, claims(1, {6, 7, 8, 9}), have_of(disk, claims(3, {9}), {1, 8}),
                  have_of(disk, claims(4, {9, 8, 7}), {1, 3}));
    require_claims(have.claims,
                   together(claims(1, {7, 8, 9}), claims(3, {9}), claims(4, {7, 8, 9})));
    CHECK(have.beyond == ImageId{1, 8});
  }
}

TEST_CASE("a rank between others that is asked for what was left out answers with that alone") {
  State state = between(3);
  tell(state, SlotsVerified{});
  for (const int child : {3, 4}) hear(state, child, Have{}, 2);
  hear(state, 0, AskDisk{}, 2);
  Have have =
      passed_on(state, own_of(1, true, {5, 6, 7, 8, 9}), have_of(true, own_of(3, true, {9, 8})),
                have_of(true, own_of(4, true, {9, 8, 7})));
  require_claims(have.claims,
                 together(own_of(1, true, {9}), own_of(3, true, {9}), own_of(4, true, {9})));
  REQUIRE(have.beyond == ImageId{1, 8});
  const auto ask = [&](const AskDisk& part) {
    const auto out = hear(state, 0, part, 2);
    for (const int child : {3, 4}) {
      REQUIRE(sent<AskDisk>(out, child) != nullptr);
      CHECK(*sent<AskDisk>(out, child) == part);
    }
    REQUIRE(first<VerifyDisk>(out) != nullptr);
    CHECK(first<VerifyDisk>(out)->newer_than == part.newer_than);
    CHECK(first<VerifyDisk>(out)->up_to == part.up_to);
  };
  // Parts are read anew: nothing of the part before comes again.
  ask({{1, 4}, {1, 8}});
  have = passed_on(state, own_of(1, true, {5, 6, 7, 8}), have_of(true, own_of(3, true, {8})),
                   have_of(true, own_of(4, true, {8, 7})));
  require_claims(have.claims,
                 together(own_of(1, true, {8}), own_of(3, true, {8}), own_of(4, true, {8})));
  REQUIRE(have.beyond == ImageId{1, 7});
  ask({{1, 4}, {1, 7}});
  have = passed_on(state, own_of(1, true, {6, 7}), have_of(true, {}),
                   have_of(true, own_of(4, true, {7})));
  require_claims(have.claims, together(own_of(1, true, {6, 7}), {}, own_of(4, true, {7})));
  CHECK(have.beyond == kNoImage);
}
