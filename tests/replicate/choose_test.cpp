#include <meshstage/core/replicate/choose.hpp>
#include <meshstage/core/replicate/protocol.hpp>

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
std::string refusal(int rank, int world_size, std::vector<std::vector<int>> holders = {}) {
  try {
    (void)make_config(rank, world_size, std::move(holders));
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

TEST_CASE("a configuration that cannot work is refused by name") {
  REQUIRE(says(refusal(3, 3), "rank 3 is not in [0, 3)"));
  REQUIRE(says(refusal(0, 2, {{0}, {0}}), "rank 0 is that rank itself"));
  REQUIRE(says(refusal(0, 2, {{1}, {2}}), "rank 2, which does not exist"));
  REQUIRE(says(refusal(0, 3, {{1, 1}, {0}, {0}}), "named twice"));
  REQUIRE(says(refusal(0, 3, {{1}}), "given for 1 ranks"));
  REQUIRE(make_config(0, 1)->wards.empty());
  REQUIRE(make_config(2, 4)->wards == std::vector<int>{0});
  REQUIRE(make_config(1, 7)->children == std::vector<int>{3, 4});
}
