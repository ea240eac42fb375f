#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/protocol/transition.hpp>

#include <algorithm>
#include <string>

#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::protocol;

namespace {

Claim claim(int at, int owner, Place place, ImageId id, int slot = 0) {
  Claim c;
  c.at = at;
  c.owner = owner;
  c.place = place;
  c.slot = slot;
  c.world_size = 2;
  c.id = id;
  return c;
}

/// What make_config refuses with; empty if it does not.
std::string refusal(int rank, int world_size, std::vector<std::vector<int>> holders = {},
                    std::vector<std::vector<int>> lenders = {}) {
  try {
    (void)make_config(rank, world_size, std::move(holders), {}, std::move(lenders));
    return {};
  } catch (const InvalidArgument& error) {
    return error.what();
  }
}

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Claim own(int rank, ImageId id) { return claim(rank, rank, Place::kOwnSlot, id); }
Claim held(int at, int owner, ImageId id) { return claim(at, owner, Place::kHeldSlot, id); }

using LoanList = std::vector<Loan>;
const ImageId kId{1, 5};
const Digest kSame{1, 2}, kOther{1, 3};

/// Rank 2's replica at that rank, which leaves that out.
Claim borrowing(int at, LoanList borrowed) {
  Claim c = held(at, 2, kId);
  c.borrowed = std::move(borrowed);
  return c;
}
Claim lending(int rank, LoanList lent, Place place = Place::kOwnSlot) {
  Claim c = claim(rank, rank, place, kId);
  c.lent = std::move(lent);
  return c;
}
Claim moved(Claim c, int at, Place place) {
  c.at = at;
  c.place = place;
  return c;
}

}  // namespace

TEST_CASE("the newest step that covers every rank is chosen, newer pieces are not") {
  const std::vector<Claim> claims = {own(0, {1, 5}), own(1, {1, 5}), own(0, {1, 10}),
                                     held(1, 0, {1, 10}), own(0, {1, 15})};
  REQUIRE(choose(claims, 2) == ImageId{1, 5});
}

TEST_CASE("owner's and holder's copies cover a step together") {
  REQUIRE(choose(std::vector<Claim>{own(0, {1, 5}), held(0, 1, {1, 5})}, 2) == ImageId{1, 5});
}

TEST_CASE("a later generation is newer, whatever its step") {
  const std::vector<Claim> claims = {own(0, {1, 90}), own(1, {1, 90}), own(0, {2, 80}),
                                     own(1, {2, 80})};
  REQUIRE(choose(claims, 2) == ImageId{2, 80});
}

TEST_CASE("images of different generations never combine") {
  REQUIRE(choose(std::vector<Claim>{own(0, {1, 5}), own(1, {2, 5})}, 2) == kNoImage);
}

TEST_CASE("nothing is chosen from no claims, or from ranks that do not exist") {
  REQUIRE(choose({}, 2) == kNoImage);
  REQUIRE(choose(std::vector<Claim>{own(0, {1, 5}), own(7, {1, 5})}, 2) == kNoImage);
}

TEST_CASE("the plan restores owners and holders from the nearest copy") {
  const ImageId id{1, 5};
  const auto holders = default_holders(2);
  SECTION("all there: nothing travels") {
    const std::vector<Claim> claims = {own(0, id), held(1, 0, id), own(1, id), held(0, 1, id)};
    REQUIRE(plan_transfers(claims, id, holders).empty());
  }
  SECTION("a lost host gets its own image from its holder and its ward's from the owner") {
    const std::vector<Claim> claims = {own(0, id), held(0, 1, id)};
    const auto plan = plan_transfers(claims, id, holders);
    REQUIRE(plan == std::vector<Transfer>{{own(0, id), 1}, {held(0, 1, id), 1}});
  }
  SECTION("memory is nearer than the own disk") {
    const std::vector<Claim> claims = {own(0, id), held(0, 1, id), held(1, 0, id),
                                       claim(1, 1, Place::kOwnFile, id)};
    const auto plan = plan_transfers(claims, id, holders);
    REQUIRE(plan == std::vector<Transfer>{{held(0, 1, id), 1}});
  }
  SECTION("the own disk is nearer than another's") {
    const std::vector<Claim> claims = {own(0, id), held(1, 0, id),
                                       claim(0, 1, Place::kHeldFile, id),
                                       claim(1, 1, Place::kOwnFile, id)};
    const auto plan = plan_transfers(claims, id, holders);
    REQUIRE(plan.size() == 2);
    REQUIRE(plan[0] == Transfer{claim(1, 1, Place::kOwnFile, id), 1});
    REQUIRE(plan[1] == Transfer{claim(0, 1, Place::kHeldFile, id), 0});
  }
}

TEST_CASE("an image in a stray vault counts, and is taken from the own host, then from a keeper") {
  const ImageId id{1, 5};
  const auto holders = default_holders(4);  // rank 1's is rank 3
  const auto stray = [&](int at, int owner, int vault) {
    Claim c = claim(at, owner, Place::kStray, id);
    c.vault = vault;
    return c;
  };
  const auto plan = [&](const std::vector<Claim>& claims) {
    return plan_transfers(claims, id, holders);
  };
  const std::vector<Claim> all = {stray(1, 0, 0), stray(1, 2, 0), stray(1, 1, 1), stray(2, 3, 1)};
  REQUIRE(choose(all, 4) == id);
  REQUIRE(plan({stray(0, 1, 1), stray(1, 1, 3), stray(3, 1, 1)}) ==
          std::vector<Transfer>{{stray(1, 1, 3), 1}, {stray(3, 1, 1), 3}});
  REQUIRE(plan({stray(0, 1, 1), stray(3, 1, 1)}).front() == Transfer{stray(3, 1, 1), 1});
  REQUIRE(plan({stray(0, 1, 1), own(1, id)}) == std::vector<Transfer>{{own(1, id), 3}});
  REQUIRE(plan({stray(0, 1, 1), claim(1, 1, Place::kOwnFile, id)}).front() ==
          Transfer{stray(0, 1, 1), 1});  // memory anywhere before a file
}

TEST_CASE("a lender's own image in a stray vault makes replicas whole, a replica there does not") {
  const Claim replica = borrowing(0, {{1, kSame}});
  Claim lender = lending(1, {{2, kSame}}, Place::kStray);
  for (const int vault : {1, 0}) {
    lender.vault = vault;
    const auto whole = whole_claims(std::vector<Claim>{replica, lender});
    REQUIRE((std::find(whole.begin(), whole.end(), replica) != whole.end()) == (vault == 1));
  }
  Claim stray = moved(replica, 0, Place::kStray);  // in the vault of whoever held it: a replica
  stray.vault = 0;
  REQUIRE(stray.needs_lenders());
  stray.vault = 2;
  REQUIRE(!stray.needs_lenders());
}

TEST_CASE("every one of several holders is restored") {
  const ImageId id{1, 5};
  const std::vector<std::vector<int>> holders = {{1, 2}, {2, 0}, {0, 1}};
  std::vector<Claim> claims = {own(0, id), own(1, id), own(2, id)};
  REQUIRE(plan_transfers(claims, id, holders).size() == 6);
}

TEST_CASE("the ranks without an image are those of the step that lacks the fewest") {
  const std::vector<Claim> claims = {own(0, {1, 5}), own(1, {1, 5}), own(0, {1, 10})};
  REQUIRE(ranks_without_image(claims, 3) == std::vector<int>{2});
  REQUIRE(ranks_without_image({}, 3) == std::vector<int>{0, 1, 2});
}

TEST_CASE("a replica is whole with the own image of each lender") {
  const Claim replica = borrowing(0, {{1, kSame}, {3, kOther}});
  const Claim one = lending(1, {{0, kOther}, {2, kSame}});
  const Claim three = lending(3, {{2, kOther}});
  const auto check = [&](std::vector<Claim> claims, bool complete) {
    auto expected = claims;
    if (!complete) std::erase(expected, replica);
    CHECK(whole_claims(claims) == expected);
  };
  check({replica, one, three}, true);
  check({three, own(0, kId), one, replica}, true);
  check({replica}, false);
  check({replica, one}, false);
  check({three, replica}, false);
  // A loan by one's word only, or with another rank.
  check({replica, one, own(3, kId)}, false);
  check({replica, lending(1, {{0, kSame}}), three}, false);
  // Of another step or generation.
  auto later = three;
  later.id.step = 6;
  check({replica, one, later}, false);
  later.id = {2, 5};
  check({replica, one, later}, false);
  // Where it could not be taken from.
  check({replica, one, moved(three, 3, Place::kOwnFile)}, false);
  check({replica, one, moved(three, 1, Place::kHeldSlot)}, false);
  check({replica, one, moved(three, 3, Place::kOwnFile), three}, true);
}

TEST_CASE("images that differ where they should not count for nothing, whole ones too") {
  const Claim replica = borrowing(0, {{1, kSame}});
  const Claim whole = moved(replica, 2, Place::kOwnSlot);
  const Claim file = moved(replica, 2, Place::kOwnFile);
  const Claim differs = lending(1, {{2, kOther}});
  const std::vector<Claim> claims{own(0, kId), replica, whole, file, differs};
  CHECK(whole_claims(claims) == std::vector<Claim>{own(0, kId), differs});
  CHECK(choose(whole_claims(claims), 3) == kNoImage);
  // Also where only a file says so, or one copy among several.
  for (const Claim& other :
       {moved(differs, 1, Place::kOwnFile), moved(differs, 0, Place::kHeldSlot)}) {
    CHECK(whole_claims(std::vector<Claim>{whole, other}) == std::vector<Claim>{other});
    const Claim good = lending(1, {{2, kSame}});
    CHECK(whole_claims(std::vector<Claim>{replica, good, other}) ==
          std::vector<Claim>{good, other});
  }
  // A whole one needs nobody.
  CHECK(whole_claims(std::vector<Claim>{whole, file}) == std::vector<Claim>{whole, file});
}

TEST_CASE("an older step is chosen where a newer one lacks what it borrows") {
  std::vector<Claim> claims{own(0, {1, 4}),
                            own(1, {1, 4}),
                            own(2, {1, 4}),
                            own(0, kId),
                            lending(1, {{2, kOther}}),
                            borrowing(0, {{1, kSame}})};
  CHECK(choose(whole_claims(claims), 3) == ImageId{1, 4});
  claims[4] = lending(1, {{2, kSame}});
  CHECK(choose(whole_claims(claims), 3) == kId);
}

TEST_CASE("an owner is sent a replica only if it can be made whole, a holder in any case") {
  const std::vector<std::vector<int>> holders{{1}, {2}, {0, 1}};
  const Claim replica = borrowing(0, {{1, kSame}});
  const Claim file = moved(replica, 2, Place::kOwnFile);
  const auto to = [&](std::vector<Claim> claims, int rank) {
    std::vector<Claim> sources;
    for (const auto& transfer : plan_transfers(claims, kId, holders)) {
      if (transfer.to == rank && transfer.source.owner == 2) sources.push_back(transfer.source);
    }
    return sources;
  };
  const Claim one = lending(1, {{2, kSame}});
  CHECK(to({own(0, kId), one, replica}, 2) == std::vector<Claim>{replica});
  CHECK(to({own(0, kId), replica}, 2).empty());
  CHECK(to({own(0, kId), replica}, 1) == std::vector<Claim>{replica});
  // Memory is nearer than the own disk, if it will do.
  CHECK(to({own(0, kId), one, replica, file}, 2) == std::vector<Claim>{replica});
  CHECK(to({own(0, kId), replica, file}, 2) == std::vector<Claim>{file});
  CHECK(to({own(0, kId), replica, file}, 1) == std::vector<Claim>{replica});
  // A copy that needs nobody goes before one that does, wherever in memory.
  const Claim whole = held(1, 2, kId);
  CHECK(to({own(0, kId), one, replica, whole}, 2) == std::vector<Claim>{whole});
  CHECK(to({own(0, kId), one, replica, moved(replica, 2, Place::kOwnSlot)}, 1) ==
        std::vector<Claim>{moved(replica, 2, Place::kOwnSlot)});
}

TEST_CASE("lenders are among the peers, and a rank knows its borrowers") {
  const std::vector<std::vector<int>> lenders{{}, {}, {}, {0, 4}, {}, {3}, {}, {3, 5}};
  const auto config = make_config(3, 8, {}, {}, lenders);
  CHECK(config->borrowers == std::vector<int>{5, 7});
  CHECK(config->lenders == lenders);
  CHECK(config->peers == std::vector<int>{0, 1, 4, 5, 7});
  const auto none = make_config(3, 8);
  CHECK(none->borrowers.empty());
  CHECK(none->lenders.size() == 8);
  CHECK(none->peers == std::vector<int>{1, 7});
  // The order in which they are given stays: that of OwnSealed::borrowed.
  const auto turned = make_config(0, 3, {}, {}, {{2, 1}, {}, {}});
  CHECK(turned->lenders[0] == std::vector<int>{2, 1});
  CHECK(make_config(2, 3, {}, {}, {{2, 1}, {}, {}})->borrowers == std::vector<int>{0});

  REQUIRE(says(refusal(0, 2, {}, {{0}, {}}), "a lender of rank 0 is that rank itself"));
  REQUIRE(says(refusal(0, 2, {}, {{}, {2}}), "lender of rank 1 is rank 2, which does not exist"));
  REQUIRE(says(refusal(0, 2, {}, {{-1}, {}}), "rank -1, which does not exist"));
  REQUIRE(says(refusal(0, 3, {}, {{1, 2, 1}, {}, {}}), "a lender of rank 0 is named twice"));
  REQUIRE(says(refusal(0, 3, {}, {{1}}), "lenders are given for 1 ranks, the world has 3"));
}

TEST_CASE("a configuration that cannot work is refused by name") {
  REQUIRE(says(refusal(3, 3), "rank 3 is not in [0, 3)"));
  REQUIRE(says(refusal(0, 2, {{0}, {0}}), "rank 0 is that rank itself"));
  REQUIRE(says(refusal(0, 2, {{1}, {2}}), "rank 2, which does not exist"));
  REQUIRE(says(refusal(0, 3, {{1, 1}, {0}, {0}}), "named twice"));
  REQUIRE(says(refusal(0, 3, {{1}}), "given for 1 ranks"));
  REQUIRE(says(refusal(0, 16'385), "16385 ranks; at most 16384 are supported"));
  const auto with_replicas = [](int each) {
    constexpr int kWorld = 16'384;
    std::vector<std::vector<int>> holders(kWorld);
    for (int r = 0; r < kWorld; ++r) {
      for (int i = 1; i <= each; ++i) {
        holders[static_cast<std::size_t>(r)].push_back((r + i) % kWorld);
      }
    }
    return refusal(0, kWorld, std::move(holders));
  };
  CHECK(with_replicas(5) == "");  // 11.6 MB
  CHECK(says(with_replicas(6), "114688 images of one step; at most 106634 are supported"));
  // A message has the claims of a child of the root and of all ranks below it.
  const std::string too_long = "and the ranks below it may have of one step, in memory and on disk";
  std::vector<std::vector<int>> at_rank_1(16'384);
  for (int r = 2; r < 16'384; ++r) at_rank_1[static_cast<std::size_t>(r)] = {1};
  CHECK(refusal(0, 16'384, at_rank_1) == "");
  std::vector<std::vector<int>> lenders(16'384);
  for (int r = 0; r < 16'384; ++r) {
    for (int i = 1; i <= 10; ++i) lenders[static_cast<std::size_t>(r)].push_back((r + i) % 16'384);
  }
  CHECK(says(refusal(0, 16'384, at_rank_1, lenders), "what rank 1 " + too_long));
  CHECK(says(refusal(0, 16'384, at_rank_1, lenders), "at most 12582912 are supported"));
  // A mesh that crosses hosts along two dimensions, and one that does along many.
  for (const auto& [copies, most] : {std::pair{3, 2}, std::pair{2, 4}, std::pair{1, 7}}) {
    INFO(copies << " copies, " << most << " lenders each");
    std::vector<std::vector<int>> holders(16'384), spread(16'384);
    for (int r = 0; r < 16'384; ++r) {
      for (int i = 1; i <= copies; ++i)
        holders[static_cast<std::size_t>(r)].push_back((r + i * 1000) % 16'384);
      for (int i = 1; i <= most; ++i)
        spread[static_cast<std::size_t>(r)].push_back((r + i) % 16'384);
    }
    CHECK(refusal(0, 16'384, holders, spread) == "");
  }
  REQUIRE(make_config(0, 1)->wards.empty());
  REQUIRE(make_config(2, 4)->wards == std::vector<int>{0});
  REQUIRE(make_config(1, 7)->children == std::vector<int>{3, 4});
}
