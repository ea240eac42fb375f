#include <meshstage/core/protocol/transition.hpp>
#include <random>
#include <string>

#include "tests/protocol/transition_support.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/explorer/explore.hpp"

// What one rank answers to one event, and what it must not be talked into.

using namespace meshstage;
using namespace meshstage::protocol;
using namespace meshstage::protocol::test;

namespace {

/// Rank 1 of two.
State ready_rank() { return protocol::test::ready_rank(make_config(1, 2)); }

/// Takes ready rank 1 through step `step` up to its own yes.
void vote(State& state, std::uint64_t step, ImageId base) {
  tell(state, StageRequested{step, {}});
  hear(state, 0, Offer{{1, step}, base, {}});
  tell(state, ReplicaReady{0, {1, step}, true});
  tell(state, OwnSealed{{1, step}, {}});
  hear(state, 0, Sealed{{1, step}, {}});
  const auto out = tell(state, ReplicaSealed{0, {1, step}});
  REQUIRE(sent<Yes>(out, 0) != nullptr);
}

}  // namespace

TEST_CASE("one rank alone stages, votes and decides by itself, the note first") {
  State state = make_state(make_config(0, 1));
  auto out = tell(state, Formed{1});
  REQUIRE(first<VerifySlots>(out) != nullptr);
  out = tell(state, SlotsVerified{});
  REQUIRE(first<VerifyDisk>(out)->newer_than == kNoImage);
  out = tell(state, FilesVerified{});
  REQUIRE(first<AskStore>(out) != nullptr);
  REQUIRE_FALSE(first<AskStore>(out)->note);  // nothing was complete
  out = tell(state, StoreAnswered{});
  REQUIRE(first<RecoveredNothing>(out) != nullptr);
  out = tell(state, StageRequested{5, {}});
  REQUIRE(first<WriteOwn>(out)->id == ImageId{1, 5});
  out = tell(state, OwnSealed{{1, 5}, {}});
  REQUIRE(first<AskStore>(out)->note);
  REQUIRE(first<Announce>(out) == nullptr);
  out = tell(state, StoreAnswered{{1, 5}});
  REQUIRE(first<Announce>(out)->verdict == Verdict::kComplete);
  REQUIRE(state.base == ImageId{1, 5});
  out = tell(state, StageRequested{6, {}});
  REQUIRE(first<WriteOwn>(out)->slot == 1);
  REQUIRE(first<WriteOwn>(out)->base == ImageId{1, 5});
  out = tell(state, OwnSealed{{1, 6}, {}});
  REQUIRE_FALSE(first<AskStore>(out)->note);  // the Store has its note
  REQUIRE(first<Announce>(out) == nullptr);
  out = tell(state, StoreAnswered{{1, 6}});
  REQUIRE(state.base == ImageId{1, 6});
}

TEST_CASE("nothing is staged before recover(), after a death, or twice") {
  State state = make_state(make_config(1, 2));
  const auto not_ready = Refuse::Reason::kNotReady;
  require_refused(state, StageRequested{1, {}}, not_ready);
  tell(state, Formed{1});
  require_refused(state, StageRequested{1, {}}, not_ready);
  state = ready_rank();
  REQUIRE(first<WriteOwn>(tell(state, StageRequested{5, {}})) != nullptr);
  require_refused(state, StageRequested{5, {}}, Refuse::Reason::kNotAbove);
  require_refused(state, StageRequested{4, {}}, Refuse::Reason::kNotAbove);
  require_refused(state, StageSkipped{5}, Refuse::Reason::kNotAbove);
  tell(state, Broken{0, ErrorKind::kPeerLost, "killed"});
  require_refused(state, StageRequested{6, {}}, not_ready);
}

TEST_CASE("a promised step keeps the next one waiting until its outcome is known") {
  State state = ready_rank();
  vote(state, 1, kNoImage);
  require_refused(state, StageRequested{2, {}}, Refuse::Reason::kBusy);
  hear(state, 0, Complete{{1, 1}});
  const auto out = tell(state, StageRequested{2, {}});
  REQUIRE(first<WriteOwn>(out)->base == ImageId{1, 1});
  REQUIRE(first<WriteOwn>(out)->slot == 1);
}

TEST_CASE("an offer tells the outcome of the round before") {
  State state = ready_rank();
  vote(state, 1, kNoImage);
  const SlotPair before = state.held[0];
  SECTION("complete: the new replica spares it") {
    const auto out = hear(state, 0, Offer{{1, 2}, {1, 1}, {}});
    REQUIRE(first<Announce>(out)->verdict == Verdict::kComplete);
    REQUIRE(before[0].id == ImageId{1, 1});
    REQUIRE(first<AcceptReplica>(out)->slot == 1);
  }
  SECTION("failed: its slots may be reused") {
    const auto out = hear(state, 0, Offer{{1, 2}, kNoImage, {}});
    REQUIRE(first<Announce>(out)->verdict == Verdict::kFailed);
    REQUIRE(first<AcceptReplica>(out) != nullptr);
    REQUIRE(sent<protocol::Failed>(out, 0) != nullptr);
  }
}

TEST_CASE("a replica of a failed step ends before its slot is written again") {
  State state = ready_rank();
  tell(state, StageRequested{1, {}});
  hear(state, 0, Offer{{1, 1}, kNoImage, {}});
  auto out = hear(state, 0, protocol::Failed{{1, 1}, 0, "no room"});
  REQUIRE(first<AbortRound>(out) != nullptr);
  out = hear(state, 0, Offer{{1, 2}, kNoImage, {}});
  REQUIRE(first<AcceptReplica>(out) == nullptr);
  hear(state, 0, Sealed{{1, 2}, {7, 8}});
  require_refused(state, StageRequested{2, {}}, Refuse::Reason::kBusy);  // the own copy, likewise
  out = tell(state, ReplicaFailed{0, {1, 1}, "aborted"});
  REQUIRE(first<AcceptReplica>(out)->id == ImageId{1, 2});
  REQUIRE(first<ExpectDigest>(out)->image_digest == Digest{7, 8});
}

TEST_CASE("a local failure or a skip votes no at once, and everyone hears of it") {
  State state = ready_rank();
  SECTION("failure") {
    tell(state, StageRequested{1, {}});
    const auto out = tell(state, OwnFailed{{1, 1}, "no room"});
    REQUIRE(sent<protocol::Failed>(out, 0)->rank == 1);
    REQUIRE(first<Announce>(out)->why == "no room");
    REQUIRE(first<WriteOwn>(tell(state, StageRequested{2, {}})) != nullptr);
  }
  SECTION("skip while the one before is open") {
    vote(state, 1, kNoImage);
    const auto out = tell(state, StageSkipped{2});
    REQUIRE(sent<protocol::Failed>(out, 0)->id == ImageId{1, 2});
    hear(state, 0, Complete{{1, 1}});
    REQUIRE(state.base == ImageId{1, 1});
    REQUIRE(first<WriteOwn>(tell(state, StageRequested{3, {}}))->base == ImageId{1, 1});
  }
  SECTION("a step that failed elsewhere is not even begun") {
    hear(state, 0, protocol::Failed{{1, 1}, 0, "skipped"});
    const auto out = tell(state, StageRequested{1, {}});
    REQUIRE(first<WriteOwn>(out) == nullptr);
    REQUIRE(first<Announce>(out)->verdict == Verdict::kFailed);
  }
  SECTION("a step that this rank has passed by") {
    tell(state, StageRequested{5, {}});
    const auto out = hear(state, 0, Offer{{1, 3}, kNoImage, {}});
    REQUIRE(sent<protocol::Failed>(out, 0)->id == ImageId{1, 3});
    REQUIRE(first<AcceptReplica>(out) == nullptr);
  }
}

TEST_CASE("messages of other generations change nothing") {
  State state = ready_rank();
  tell(state, StageRequested{1, {}});
  for (const std::uint64_t generation : {0ULL, 2ULL, 99ULL}) {
    require_refused(state, message(0, protocol::Failed{{1, 1}, 0, {}}, generation), kStale);
    require_refused(state, message(0, Death{0, ErrorKind::kPeerLost, {}}, generation), kStale);
    require_refused(state, message(0, Offer{{1, 1}, kNoImage, {}}, generation), kStale);
  }
}

TEST_CASE("well-formed messages that no peer would send are refused, and nothing changes") {
  State state = ready_rank();
  tell(state, StageRequested{1, {}});
  hear(state, 0, Offer{{1, 1}, kNoImage, {}});
  require_refused(state, message(1, Yes{{1, 1}}), kMalformed);                  // from itself
  require_refused(state, message(7, Yes{{1, 1}}), kMalformed);                  // no such rank
  require_refused(state, message(0, Yes{{1, 1}}), kMalformed);                  // no child
  require_refused(state, message(0, Complete{{1, 1}}), kMalformed);             // not voted yet
  require_refused(state, message(0, Offer{{1, 1}, kNoImage, {}}), kMalformed);  // twice
  require_refused(state, message(0, Offer{{1, 2}, {1, 2}, {}}), kMalformed);    // its own base
  require_refused(state, message(0, Offer{{1, 9}, {1, 8}, {}}), kMalformed);    // base unheard of
  require_refused(state, message(0, Offer{{2, 1}, kNoImage, {}}), kMalformed);  // generation
  require_refused(state, message(0, Sealed{{1, 1}, {}}, 3), kStale);
  require_refused(state, message(0, Accept{{1, 4}, true}), kStale);
  require_refused(state, message(0, AskDisk{}), kMalformed);
  require_refused(state, message(0, AskDisk{kNoImage, {1, 1}}), kMalformed);
  require_refused(state, message(0, protocol::Choice{}), kMalformed);
  require_refused(state, message(0, Ready{}), kMalformed);
  require_refused(state, message(0, GiveUp{}), kMalformed);
  require_refused(state, message(0, Have{}), kMalformed);
  require_refused(state, message(0, AllOnDisk{{1, 1}}), kMalformed);
  require_refused(state, message(0, Finish{}), kMalformed);
  require_refused(state, message(0, WantFinish{}), kMalformed);
  require_refused(state, message(0, OnDisk{{1, 1}}), kMalformed);
}

TEST_CASE("a death is noted in the Store and passed on before transfers are aborted") {
  State state = ready_rank();
  tell(state, StageRequested{1, {}});
  SECTION("seen by this rank") {
    const auto out = tell(state, Broken{0, ErrorKind::kPeerSilent, "silent"});
    REQUIRE(std::holds_alternative<NoteDeath>(out.at(0)));
    REQUIRE(sent<Death>(out, 0)->kind == ErrorKind::kPeerSilent);
    REQUIRE(std::holds_alternative<AbortTransfers>(out.at(2)));
    REQUIRE(first<Announce>(out)->verdict == Verdict::kOpen);
    REQUIRE(first<ReportLost>(out)->rank == 0);
  }
  SECTION("heard of: the rank named is the one that died") {
    const auto out = hear(state, 0, Death{0, ErrorKind::kPeerLost, "killed"});
    REQUIRE(first<NoteDeath>(out) == nullptr);
    REQUIRE(first<ReportLost>(out)->why == "killed");
  }
  REQUIRE(state.mode == Mode::kBroken);
  require_refused(state, Broken{0, ErrorKind::kPeerLost, {}}, kStale);
}

TEST_CASE("no sequence of events breaks a rank, and what is refused changes nothing") {
  std::mt19937_64 random(11);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  const auto id = [&] { return ImageId{below(3), below(4)}; };
  const auto rank = [&] { return static_cast<int>(below(4)) - 1; };
  const auto any_body = [&]() -> Body {
    switch (below(23)) {
      case 0:
        return Offer{id(), id(), {}};
      case 1:
        return Accept{id(), true};
      case 2:
        return Sealed{id(), {}};
      case 3:
        return Yes{id()};
      case 4:
        return Complete{id()};
      case 5:
        return protocol::Failed{id(), rank(), "x"};
      case 6:
        return Have{below(2) == 1, {Claim{rank(), rank(), {}, 0, 3, id(), id(), {}, {}}}, id()};
      case 7:
        return AskDisk{id(), below(2) == 1 ? id() : kNoImage};
      case 8:
        return protocol::Choice{
            id(), id(), {{Claim{rank(), rank(), {}, 0, 3, id(), id(), {}, {}}, rank()}}};
      case 9:
        return below(2) == 1 ? Ready{Failure{ErrorKind::kStructureMismatch, rank(), {}, {}, {}}}
                             : Ready{};
      case 10:
        return Established{id()};
      case 11:
        return GiveUp{};
      case 12:
        return OnDisk{id()};
      case 13:
        return AllOnDisk{id()};
      case 14:
        return WantFinish{};
      case 15:
        return Finish{};
      case 16:
        return StreamStart{rank(), id()};
      case 17:
        return Want{id(), {{"x", 1}}};
      case 18:
        return Overdue{id(), static_cast<std::uint32_t>(below(3))};
      case 19:
        return Publish{{id(), 4}, below(2) == 1};
      case 20:
        return Published{"x", {rank()}};
      case 21:
        return Moved{below(3), below(2) == 1};
      default:
        return Death{rank(), ErrorKind::kPeerLost, "x"};
    }
  };
  const auto any_event = [&]() -> Event {
    switch (below(28)) {
      case 0:
        return Formed{below(4)};
      case 1:
        return SlotsVerified{{Claim{rank(), rank(), {}, 0, 3, id(), id(), {}, {}}}, id()};
      case 2:
        return FilesVerified{};
      case 3:
        return Fetched{rank()};
      case 4:
        return FetchFailed{rank(), ErrorKind::kIo, "x"};
      case 5:
        return StructureChecked{"", below(2) == 1 ? "x" : ""};
      case 6:
        return StageRequested{below(4), {}};
      case 7:
        return StageSkipped{below(4)};
      case 8:
        return OwnSealed{id(), {}};
      case 9:
        return OwnFailed{id(), "x"};
      case 10:
        return ReplicaReady{rank(), id(), true};
      case 11:
        return ReplicaSealed{rank(), id()};
      case 12:
        return ReplicaFailed{rank(), id(), "x"};
      case 13:
        return StoreAnswered{id(), static_cast<StoreAnswered::Found>(below(4)), "x"};
      case 14:
        return Persisted{id()};
      case 15:
        return FinishRequested{};
      case 16:
        return Broken{rank(), ErrorKind::kPeerLost, "x"};
      case 17:
        return Waited{static_cast<std::uint32_t>(below(3))};
      case 18:
        return CopyStuck{id(), "x"};
      case 19:
        return OldPublished{"x", {rank()}};
      case 20:
        return OldFound{{{id(), 4}}, {id(), 4}};
      case 21:
        return ReadStuck{"x"};
      default:
        return Received{rank(), Message{below(3), any_body()}};
    }
  };
  for (int run = 0; run < 400; ++run) {
    State state =
        make_state(make_config(static_cast<int>(below(3)), 3, {}, {}, {}, 0, below(2) == 1));
    for (int i = 0; i < 200; ++i) {
      const State before = state;
      const auto out = tell(state, any_event());
      if (out.size() == 1 && std::holds_alternative<Refuse>(out[0])) REQUIRE(state == before);
    }
  }
}

TEST_CASE("equal worlds have equal bytes, and different states different ones") {
  explorer::Bounds bounds;
  bounds.world = 3;
  bounds.crashes = 2;
  bounds.local_failures = 1;
  std::mt19937_64 random(3);
  explorer::World world(std::make_shared<const explorer::Bounds>(bounds));
  for (int i = 0; i < 400; ++i) {
    const auto choices = world.choices();
    if (choices.empty()) break;
    explorer::World other = world;
    REQUIRE(other.bytes() == world.bytes());
    const auto& choice = choices[random() % choices.size()];
    world.step(choice);
    REQUIRE(world.bytes() != other.bytes());
    for (int r = 0; r < 3; ++r) {
      std::string a, b;
      explorer::put(a, world.node(r).state);
      explorer::put(b, other.node(r).state);
      const Mode mode = world.node(r).state.mode;
      if (mode == Mode::kReady || mode == Mode::kRecovering) {
        REQUIRE((world.node(r).state == other.node(r).state) == (a == b));
      }
    }
    other.step(choice);
    REQUIRE(other.bytes() == world.bytes());
  }
}
