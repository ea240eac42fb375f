// What other ranks have too: the vote that waits for it, the step that fails where it differs, the
// recovery that needs it.
#include <algorithm>
#include <string>

#include "tests/protocol/transition_support.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::protocol;
using namespace meshstage::protocol::test;
using Catch::Matchers::Contains;

namespace {

constexpr ImageId kStep{1, 5};
const Digest kFirst{1, 10}, kLast{2, 20}, kMine{3, 30};

/// Rank r's holder is r + 1. Rank 1 lends to ranks 0 and 2, rank 0 to rank 1.
std::shared_ptr<const Config> config_of(int rank) {
  return make_config(rank, 3, {{1}, {2}, {0}}, {}, {{1}, {0}, {1}});
}

OwnSealed own_sealed() { return {kStep, {7, 7}, {{kStep, 1000, kMine}}, {kFirst, kLast}}; }

Borrow borrow(const Digest& digest, std::uint64_t bytes = 1000) { return {kStep, bytes, digest}; }

/// Rank 1, its ward's replica of kStep sealed, its own image still being staged.
State staging_rank() {
  State state = ready_rank(config_of(1));
  tell(state, StageRequested{kStep.step, {}});
  hear(state, 0, Offer{kStep, kNoImage, {}});
  tell(state, ReplicaReady{0, kStep, true});
  hear(state, 0, Sealed{kStep, {}});
  tell(state, ReplicaSealed{0, kStep});
  return state;
}

/// The step has failed at rank 1 because rank `rank` differs; everyone who must know is told.
void require_differs(const std::vector<Action>& out, int rank) {
  const Differ* differ = sent<Differ>(out, rank);
  REQUIRE(differ != nullptr);
  CHECK(differ->id == kStep);
  const Failed* failed = sent<Failed>(out, 0);
  REQUIRE(failed != nullptr);
  CHECK(failed->rank == 1);
  CHECK_THAT(failed->why, Contains("other bytes than rank " + std::to_string(rank)));
  REQUIRE(first<Announce>(out) != nullptr);
  CHECK(first<Announce>(out)->verdict == Verdict::kFailed);
  CHECK(sent<Yes>(out, 0) == nullptr);
}

Claim claim(int at, int owner, Place place, int slot = 0) {
  Claim c;
  c.at = at;
  c.owner = owner;
  c.place = place;
  c.slot = slot;
  c.world_size = 3;
  c.id = kStep;
  return c;
}

/// Rank 2's replica at rank 0, which borrows from rank `by`.
Claim leaves_out(int by) {
  Claim c = claim(0, 2, Place::kHeldSlot);
  c.sizes.borrowed_bytes = 1000;
  c.borrowed = {{by, kLast}};
  return c;
}

/// Rank 1's own image in slot 1, from which that replica borrows.
Claim lending(const Digest& digest = kLast) {
  Claim c = claim(1, 1, Place::kOwnSlot, 1);
  c.lent = {{2, digest}};
  return c;
}

/// Rank 1 in generation 2, about to learn the choice; what it has itself.
State choosing_rank(std::shared_ptr<const Config> config, std::vector<Claim> claims) {
  State state = make_state(std::move(config));
  tell(state, Formed{2});
  tell(state, SlotsVerified{std::move(claims), kStep});
  hear(state, 0, AskDisk{}, 2);
  tell(state, FilesVerified{});
  return state;
}

std::vector<Action> choose_transfers(State& state, std::vector<Transfer> transfers) {
  return hear(state, 0, protocol::Choice{kStep, kNoImage, std::move(transfers)}, 2);
}

}  // namespace

TEST_CASE("the vote waits for the word of every borrower") {
  State state = staging_rank();
  REQUIRE(sent<Yes>(tell(state, own_sealed()), 0) == nullptr);
  SECTION("in the order of ranks") {
    REQUIRE(hear(state, 0, borrow(kFirst)).empty());
    REQUIRE(sent<Yes>(hear(state, 2, borrow(kLast)), 0) != nullptr);
  }
  SECTION("in any other") {
    REQUIRE(hear(state, 2, borrow(kLast)).empty());
    REQUIRE(sent<Yes>(hear(state, 0, borrow(kFirst)), 0) != nullptr);
  }
}

TEST_CASE("word that comes before the own image is sealed is compared when it is") {
  State state = staging_rank();
  REQUIRE(hear(state, 0, borrow(kFirst)).empty());
  SECTION("the same") {
    REQUIRE(hear(state, 2, borrow(kLast)).empty());
    REQUIRE(sent<Yes>(tell(state, own_sealed()), 0) != nullptr);
  }
  SECTION("not the same") {
    REQUIRE(hear(state, 2, borrow(kFirst)).empty());
    require_differs(tell(state, own_sealed()), 2);
  }
}

TEST_CASE("different bytes fail the step, and the borrower is told") {
  State state = staging_rank();
  SECTION("another digest") {
    tell(state, own_sealed());
    require_differs(hear(state, 0, borrow(kLast)), 0);
  }
  SECTION("nothing of them known here") {
    OwnSealed sealed = own_sealed();
    sealed.lent = {kFirst};
    tell(state, sealed);
    require_differs(hear(state, 2, borrow(kLast)), 2);
  }
  SECTION("a replica that is still on its way is given up") {
    state = ready_rank(config_of(1));
    tell(state, StageRequested{kStep.step, {}});
    hear(state, 0, Offer{kStep, kNoImage, {}});
    tell(state, own_sealed());
    const auto out = hear(state, 2, borrow(kMine));
    require_differs(out, 2);
    REQUIRE(first<AbortRound>(out) != nullptr);
  }
  REQUIRE(state.rounds.at(0).verdict == Verdict::kFailed);
}

TEST_CASE("of a step that has failed all differences are found, and nothing else is said") {
  State state = staging_rank();
  tell(state, own_sealed());
  require_differs(hear(state, 2, borrow(kMine)), 2);
  const auto out = hear(state, 0, borrow(kMine));  // the other borrower, too late
  REQUIRE(sent<Differ>(out, 0) != nullptr);
  CHECK(out.size() == 1);
  require_refused(state, message(0, borrow(kMine)), kMalformed);  // twice
}

TEST_CASE("who leaves nothing out has nothing to be compared") {
  State state = staging_rank();
  OwnSealed sealed = own_sealed();
  sealed.lent.clear();
  tell(state, sealed);
  REQUIRE(hear(state, 0, borrow(kMine, 0)).empty());
  REQUIRE(sent<Yes>(hear(state, 2, borrow(kMine, 0)), 0) != nullptr);
}

TEST_CASE("a lender is told what this rank's replicas borrow, with the seal") {
  State state = staging_rank();
  SECTION("something") {
    const auto out = tell(state, own_sealed());
    REQUIRE(sent<Borrow>(out, 0) != nullptr);
    CHECK(*sent<Borrow>(out, 0) == Borrow{kStep, 1000, kMine});
    CHECK(sent<Borrow>(out, 2) == nullptr);  // lends nothing to this rank
    CHECK(sent<Sealed>(out, 2) != nullptr);
  }
  SECTION("nothing") {
    OwnSealed sealed = own_sealed();
    sealed.borrowed.clear();
    const auto out = tell(state, sealed);
    REQUIRE(sent<Borrow>(out, 0) != nullptr);
    CHECK(*sent<Borrow>(out, 0) == Borrow{kStep, 0, {}});
  }
  SECTION("of a step that has failed, too, which holders need no more") {
    hear(state, 0, Failed{kStep, 0, "elsewhere"});
    const auto out = tell(state, own_sealed());
    CHECK(sent<Borrow>(out, 0) != nullptr);
    CHECK(sent<Sealed>(out, 2) == nullptr);
  }
}

TEST_CASE("a word that no correct rank sends is refused") {
  State state = staging_rank();
  hear(state, 0, borrow(kFirst));
  require_refused(state, message(0, borrow(kFirst)), kMalformed);  // twice
  require_refused(state, message(0, Borrow{{3, 5}, 1, kFirst}), kMalformed);
  State other = ready_rank(config_of(2));  // which has no borrower
  require_refused(other, message(1, borrow(kFirst)), kMalformed);
  require_refused(other, message(0, borrow(kFirst)), kMalformed);
}

TEST_CASE("word of a step that this rank has passed by fails that step") {
  State state = ready_rank(config_of(1));
  tell(state, StageRequested{6, {}});
  const auto out = hear(state, 2, borrow(kLast));
  REQUIRE(sent<Failed>(out, 0) != nullptr);
  CHECK(sent<Failed>(out, 0)->id == kStep);
  CHECK(sent<Differ>(out, 2) == nullptr);
}

TEST_CASE("word of a step before this rank's trainer comes to it is kept") {
  State state = ready_rank(config_of(1));
  REQUIRE(hear(state, 2, borrow(kFirst)).empty());
  tell(state, StageRequested{kStep.step, {}});
  require_differs(tell(state, own_sealed()), 2);
}

TEST_CASE("a borrower that is told of a difference borrows no more, whatever became of the step") {
  const auto stops = [](State& state) {
    const State before = state;
    const auto out = hear(state, 0, Differ{kStep});
    REQUIRE(first<StopBorrowing>(out) != nullptr);
    CHECK(first<StopBorrowing>(out)->from == 0);
    CHECK(first<StopBorrowing>(out)->id == kStep);
    CHECK(out.size() == 1);
    CHECK(state == before);
  };
  State state = staging_rank();
  stops(state);
  tell(state, own_sealed());
  stops(state);
  hear(state, 0, Failed{kStep, 0, "elsewhere"});
  stops(state);
  tell(state, StageRequested{6, {}});
  stops(state);
  state = staging_rank();
  tell(state, own_sealed());
  hear(state, 2, borrow(kLast));
  hear(state, 0, borrow(kFirst));
  hear(state, 0, Complete{kStep});
  REQUIRE(state.base == kStep);  // and nothing of it is remembered
  stops(state);
  // From a rank that lends nothing to this one.
  require_refused(state, message(2, Differ{kStep}), kMalformed);
  tell(state, Broken{2, ErrorKind::kPeerLost, "killed"});
  require_refused(state, message(0, Differ{kStep}), kStale);
}

TEST_CASE("word from a rank that knows the recovery to be agreed says so to this one") {
  const auto waiting = [] {
    State state = make_state(config_of(1));
    tell(state, Formed{1});
    tell(state, SlotsVerified{});
    hear(state, 0, AskDisk{});
    tell(state, FilesVerified{});
    return state;
  };
  State state = waiting();
  require_refused(state, message(2, borrow(kLast)), kMalformed);
  require_refused(state, message(0, Differ{kStep}), kMalformed);
  hear(state, 0, protocol::Choice{});
  REQUIRE(first<RecoveredNothing>(hear(state, 2, borrow(kLast))) != nullptr);
  REQUIRE(state.mode == Mode::kReady);
  state = waiting();
  hear(state, 0, protocol::Choice{});
  const auto out = hear(state, 0, Differ{kStep});
  REQUIRE(first<RecoveredNothing>(out) != nullptr);
  REQUIRE(first<StopBorrowing>(out) != nullptr);
}

TEST_CASE("a lender with its own image of the step serves a borrower that fetches its own") {
  State state = choosing_rank(config_of(1), {lending()});
  const auto out = choose_transfers(state, {{leaves_out(1), 2}});
  const auto* serve = first<ServeLent>(out);
  REQUIRE(serve != nullptr);
  CHECK(serve->id == kStep);
  CHECK(serve->slot == 1);
  CHECK(serve->to == 2);
  CHECK(first<Serve>(out) == nullptr);
  REQUIRE(sent<Ready>(tell(state, StructureChecked{}), 0) != nullptr);
  // It may fail after this rank was ready.
  const auto failed = tell(state, FetchFailed{2, ErrorKind::kCorruptData, "no such storage"});
  for (const int peer : {0, 2}) REQUIRE(sent<GiveUp>(failed, peer) != nullptr);
  CHECK(first<RecoverFailed>(failed)->failure.why == "no such storage");
}

TEST_CASE("a lender serves nothing that is whole, goes to a holder or is another's to lend") {
  Claim whole = leaves_out(1);
  whole.place = Place::kOwnFile;
  whole.at = 2;
  const auto config = make_config(1, 3, {{2}, {2}, {0, 1}}, {}, {{1}, {0}, {0, 1}});
  State state = choosing_rank(config, {lending()});
  SECTION("a file has all of it") {
    CHECK(first<ServeLent>(choose_transfers(state, {{whole, 2}})) == nullptr);
  }
  SECTION("a holder keeps the replica as it is") {
    const auto out = choose_transfers(state, {{leaves_out(1), 1}});
    CHECK(first<ServeLent>(out) == nullptr);
    CHECK(first<Fetch>(out) != nullptr);
  }
  SECTION("another rank lends") {
    CHECK(first<ServeLent>(choose_transfers(state, {{leaves_out(0), 2}})) == nullptr);
  }
  REQUIRE(state.mode == Mode::kRecovering);
}

TEST_CASE("a lender without its own image of the step gives up") {
  std::vector<Claim> has;
  std::vector<Transfer> transfers{{leaves_out(1), 2}};
  SECTION("none") {}
  SECTION("one of another step") {
    has = {lending()};
    has[0].id.step = 4;
  }
  SECTION("it fetches a replica of its own, which has to be made whole itself") {
    Claim borrows = claim(2, 1, Place::kHeldSlot);
    borrows.borrowed = {{0, {}}};
    transfers.insert(transfers.begin(), Transfer{borrows, 1});
  }
  State state = choosing_rank(config_of(1), has);
  const auto out = choose_transfers(state, transfers);
  CHECK(first<ServeLent>(out) == nullptr);
  REQUIRE(first<RecoverFailed>(out) != nullptr);
  const Failure& failure = first<RecoverFailed>(out)->failure;
  CHECK(failure.kind == ErrorKind::kInvalidState);
  CHECK(failure.rank == 1);
  CHECK_THAT(failure.why, Contains("rank 1 is to lend to the image of rank 2"));
  for (const int peer : {0, 2}) REQUIRE(sent<GiveUp>(out, peer) != nullptr);
}

TEST_CASE("a lender that fetches its own image lends from it when it is there") {
  State state = choosing_rank(config_of(1), {});
  const auto out =
      choose_transfers(state, {{claim(2, 1, Place::kHeldSlot), 1}, {leaves_out(1), 2}});
  REQUIRE(first<Fetch>(out) != nullptr);
  CHECK(first<ServeLent>(out) == nullptr);
  const auto later = tell(state, Fetched{1});
  REQUIRE(first<ServeLent>(later) != nullptr);
  CHECK(first<ServeLent>(later)->slot == first<Fetch>(out)->slot);
  CHECK(first<ServeLent>(later)->to == 2);
}

TEST_CASE("a choice that has a stranger lend to a replica is malformed") {
  State state = choosing_rank(config_of(1), {lending()});
  const auto choice = [&](Claim source, int to) {
    return message(0, protocol::Choice{kStep, kNoImage, {{std::move(source), to}}}, 2);
  };
  require_refused(state, choice(leaves_out(0), 2),
                  kMalformed);  // rank 0 lends nothing to rank 2
  Claim both = leaves_out(1);
  both.borrowed.insert(both.borrowed.begin(), Loan{0, kFirst});
  require_refused(state, choice(both, 2), kMalformed);
  Claim beyond = leaves_out(7);
  require_refused(state, choice(beyond, 2), kMalformed);
  REQUIRE(first<ServeLent>(tell(state, choice(leaves_out(1), 2))) != nullptr);
}

TEST_CASE("the root counts a replica only with what it borrows, within reach") {
  const auto recover = [](std::shared_ptr<const Config> config, const Claim& at_first) {
    State state = make_state(std::move(config));
    tell(state, Formed{2});
    tell(state, SlotsVerified{{claim(0, 0, Place::kOwnSlot), leaves_out(1)}, kStep});
    hear(state, 1, Have{false, {at_first}, kStep}, 2);
    hear(state, 2, Have{false, {}, kNoImage}, 2);
    tell(state, FilesVerified{});
    hear(state, 1, Have{true, {}, kNoImage}, 2);
    return hear(state, 2, Have{true, {}, kNoImage}, 2);
  };
  SECTION("the lender has it") {
    const auto out = recover(config_of(0), lending());
    for (const int child : {1, 2}) {
      const auto* choice = sent<protocol::Choice>(out, child);
      REQUIRE(choice != nullptr);
      CHECK(choice->id == kStep);
      const Transfer wanted{leaves_out(1), 2};
      CHECK(std::count(choice->transfers.begin(), choice->transfers.end(), wanted) == 1);
    }
  }
  SECTION("the image that is to complete it has other bytes") {
    const auto out = recover(config_of(0), lending(kFirst));
    REQUIRE(first<RecoverFailed>(out) != nullptr);
    CHECK(first<RecoverFailed>(out)->failure.ranks == std::vector<int>{2});
  }
  SECTION("the image that is to complete it is on disk alone") {
    auto file = lending();
    file.place = Place::kOwnFile;
    const auto out = recover(config_of(0), file);
    REQUIRE(first<RecoverFailed>(out) != nullptr);
    CHECK(first<RecoverFailed>(out)->failure.ranks == std::vector<int>{2});
  }
  SECTION("this job borrows nothing any more") {
    const auto out = recover(make_config(0, 3, {{1}, {2}, {0}}), lending());
    REQUIRE(first<RecoverFailed>(out) != nullptr);
    CHECK(first<RecoverFailed>(out)->failure.rank == 2);
    CHECK_THAT(first<RecoverFailed>(out)->failure.why,
               Contains("which borrows from rank 1, no longer its lender"));
  }
}
